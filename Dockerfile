# The image of a Ray cluster that runs hallmarks jobs: head, workers and submitter alike.
# Versions are those of the lock; on a machine with CUDA torch's own wheel brings what it needs.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/hallmarks

# Dependencies first: they change less often than the code.
COPY constraints.txt pyproject.toml README.md ./
RUN mkdir pipeline jobs && touch pipeline/__init__.py jobs/__init__.py \
    && pip install --constraint constraints.txt . && pip uninstall --yes hallmarks

COPY pipeline pipeline
COPY jobs jobs
RUN pip install --no-deps . && useradd --create-home ray
USER ray
WORKDIR /home/ray

ENTRYPOINT ["hallmarks"]
CMD ["--help"]
