"""A Hub on loopback: what the real `huggingface_hub` client and range reads need of one.

    hub = Hub()
    commit = hub.repository("org/model").commit({"model.safetensors": data}, branch="step0")
    with hub.serve() as endpoint:                     # http://localhost:PORT → HF_ENDPOINT
        ...
    assert hub.count("refs") == 1

Files of weights are answered with a redirect to a second host name (127.0.0.1) and a signed,
expiring address, as the Hub's are. Every request is recorded; `hub.faults` makes answers go wrong.
With `hub.serve(Authority(folder))` both hosts speak TLS, for clients whose SSL_CERT_FILE is `ca.pem`
of that folder.
"""

from tests.hub.faults import Fault, Faults
from tests.hub.proxy import Proxy
from tests.hub.repository import Repository
from tests.hub.server import Hub, Record
from tests.hub.tls import Authority

__all__ = ["Authority", "Fault", "Faults", "Hub", "Proxy", "Record", "Repository"]
