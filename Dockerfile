# syntax=docker/dockerfile:1
# The image of a cluster that runs hallmarks jobs: head, workers and submitter alike.
#
#   docker build --tag REGISTRY/hallmarks:0.1.0 .
#
# It is Ray's own image with the locked dependencies and this program in its environment, so that
# what KubeRay, the cluster launcher and `ray job submit` call finds one Ray, one Python, one PATH.
# RAY_TAG picks another variant of it, Ray's version being that of constraints.txt:
#
#   docker build --build-arg RAY_TAG=2.60.0-py311-gpu --tag REGISTRY/hallmarks:0.1.0-gpu .
#
# torch is what decides whether a GPU is used: on x86-64 the locked version is a CUDA build on PyPI
# and brings several GB of CUDA libraries, so that the plain variant runs on GPU nodes, too, which
# add the driver; `-gpu` and `-cu12…` put a CUDA toolkit and its compiler beside them. For a small
# image without CUDA have pip see an index with CPU builds, whose 2.13.0+cpu satisfies the lock and
# is preferred: a pip.conf with `extra-index-url`, passed as `--secret id=pip,src=pip.conf`.
ARG RAY_TAG=2.60.0-py311

# What is built is built here, so that nothing of it (setuptools, sources) stays in the image.
FROM rayproject/ray:${RAY_TAG} AS build
# A home directory is the user's, whoever makes directories for COPY and WORKDIR.
RUN mkdir /home/ray/source /home/ray/wheels
WORKDIR /home/ray/source
COPY --chown=1000:100 pyproject.toml README.md ./
# The image of the dependencies depends on this list alone: it is kept while only code changes.
RUN python -c "import tomllib; print(*tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'], sep='\n')" \
    > ../requirements.txt
COPY --chown=1000:100 hallmarks hallmarks
COPY --chown=1000:100 pipeline pipeline
COPY --chown=1000:100 jobs jobs
# pip's settings come as a secret, since an index may want a password, which ARG would keep.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,uid=1000 \
    pip wheel --no-cache-dir --no-deps --wheel-dir ../wheels .

FROM rayproject/ray:${RAY_TAG}
# Where stores are mounted. A new volume takes the owner from here, or `ray` could not write to it.
USER 0
RUN install -d -o 1000 -g 100 /store
# By number: Kubernetes' runAsNonRoot cannot tell who a name is. It is `ray` in Ray's images.
USER 1000
WORKDIR /home/ray
# Kept in the image: what is installed on top is held to the same versions.
COPY constraints.txt /opt/hallmarks/
COPY --from=build /home/ray/requirements.txt /opt/hallmarks/
# Wheels only: a package that would have to be compiled fails here, there is no compiler. A RAY_TAG
# of another version than the lock's fails, too, instead of having its Ray replaced.
RUN --mount=type=secret,id=pip,target=/etc/pip.conf,uid=1000 \
    test "$(ray --version)" = "ray, version $(sed -n 's/^ray==//p' /opt/hallmarks/constraints.txt)" \
    && pip install --no-cache-dir --only-binary=:all: --constraint /opt/hallmarks/constraints.txt \
        --requirement /opt/hallmarks/requirements.txt
RUN --mount=type=bind,from=build,source=/home/ray/wheels,target=/tmp/wheels \
    pip install --no-cache-dir --no-deps --no-index /tmp/wheels/*.whl
ENV PYTHONUNBUFFERED=1

# No ENTRYPOINT: KubeRay, the launcher and compose each start `ray` or a shell.
CMD ["hallmarks", "--help"]
