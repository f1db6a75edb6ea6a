# The server as an image; docs/DEPLOY.md says how to build and run it.
#
#   docker build -t hope-server:local --build-arg TORCH_CPU_INDEX_URL=… .     computes on the CPU (runtime-cpu)
#   docker build -t hope-server:cuda --target runtime-cuda .                  with a CUDA build of torch, to train
#
# Images are pinned by tag; --build-arg PYTHON_IMAGE=python:3.11-slim-bookworm@sha256:… pins a digest from outside.

# One image for every stage, so that the environment made in one works in the other.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

# --- what installing needs: a compiler, the locked packages ---
FROM ${PYTHON_IMAGE} AS build
# A build that fails inside a pipe must fail.
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Compiles the C++ operators. Debian's mirrors keep no older versions, so a pinned one would soon be gone; nothing of
# this stage but its results is in the image.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /src
# Where it will lie in the image: an environment cannot be moved.
RUN python -m venv /srv/hope/venv
ENV PATH=/srv/hope/venv/bin:$PATH \
    PIP_CACHE_DIR=/var/cache/pip \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_INPUT=1
COPY requirements/runtime.txt requirements/torch.txt requirements/
# Exactly these files, or none: docs/adr/0002. Changes of the project's own code do not reach this layer. pip's cache is
# a mount, which is in no layer.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install --no-deps --require-hashes -r requirements/runtime.txt

# --- the project, as packages ---
FROM build AS wheels
COPY pyproject.toml README.md LICENSE ./
COPY hope_server hope_server/
COPY kernels/hope_kernels kernels/hope_kernels/
COPY memory_store/hope_memory memory_store/hope_memory/
COPY clients clients/
# setuptools, which builds them, is in the lock.
RUN pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . ./clients

# --- torch for the CPU, the project, and what a first start would make ---
FROM build AS build-cpu
# Where torch, and only torch, comes from, as for scripts/setup.sh. Name an index of CPU builds: where pip looks when
# this is empty there may be a build with CUDA, which works here too and brings gigabytes that are never used.
ARG TORCH_CPU_INDEX_URL=
# What a CPU build needs is installed already, so nothing that is not locked comes along.
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install ${TORCH_CPU_INDEX_URL:+--index-url "$TORCH_CPU_INDEX_URL"} -r requirements/torch.txt
COPY --from=wheels /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl
# A name that the server knows: smollm2-135m-instruct or hope-nano. Any other model can be mounted (docs/DEPLOY.md).
ARG MODEL=smollm2-135m-instruct
COPY deploy/bake.py ./
# In the image: a container starts in seconds and needs nothing writable for it, and all share the pages of one file.
RUN python bake.py "$MODEL" /srv/hope

# --- the same project beside a torch that has CUDA ---
FROM build AS build-cuda
# As above. Empty: wherever pip looks, which for Linux usually has a CUDA build. Its own libraries come along, unhashed.
ARG TORCH_CUDA_INDEX_URL=
# hadolint ignore=DL3042
RUN --mount=type=cache,target=/var/cache/pip \
    pip install ${TORCH_CUDA_INDEX_URL:+--index-url "$TORCH_CUDA_INDEX_URL"} -r requirements/torch.txt
COPY --from=wheels /wheels /wheels
RUN pip install --no-cache-dir --no-deps --no-index /wheels/*.whl

# --- what both images have besides their environment ---
FROM ${PYTHON_IMAGE} AS runtime
LABEL org.opencontainers.image.title="HOPE Server" \
      org.opencontainers.image.description="An inference server whose sessions learn" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.documentation="docs/DEPLOY.md"
# The compiled operators' threads; the slim image has none of its own, and without it they would not load. Unpinned as
# above.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/*
# A number as well as a name: Kubernetes' runAsNonRoot looks at numbers, and volumes keep their owner across images.
# The two folders are the only ones that are the server's to write; what it runs and serves belongs to root.
RUN groupadd --gid 10001 hope \
    && useradd --uid 10001 --gid 10001 --home-dir /var/lib/hope --no-create-home --shell /usr/sbin/nologin hope \
    && install --directory --owner 10001 --group 10001 --mode 0700 /var/lib/hope /var/cache/hope
# Listens to others: a container's own 127.0.0.1 reaches nobody. Publish its port with care, or make keys.
# The baked model is served in place; HOPE_CACHE_DIR holds the compiled operators and is not written.
# Python writes no .pyc where it could, and holds back no line of the log.
ENV PATH=/srv/hope/venv/bin:$PATH \
    HOME=/var/lib/hope \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOPE_HOST=0.0.0.0 \
    HOPE_PORT=8000 \
    HOPE_MODEL=/srv/hope/model \
    HOPE_CACHE_DIR=/srv/hope/cache \
    HOPE_STORE=/var/lib/hope/sessions.db
WORKDIR /var/lib/hope
# Sessions and their keys, unless they are kept elsewhere: losing a container must not lose them.
VOLUME ["/var/lib/hope"]
EXPOSE 8000
# A server that is told so finishes its turns (HOPE_DRAIN_SECONDS) before it ends.
STOPSIGNAL SIGTERM
# Whether it lives; the same with /ready says when turns are taken. The first minute, while it loads, does not count.
COPY --chmod=0644 deploy/health.py /srv/hope/health.py
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "/srv/hope/health.py", "/health"]
# The command itself is the process that signals reach, without a shell between. `docker run IMAGE doctor` runs others.
ENTRYPOINT ["hope"]
CMD ["serve"]

# --- image: CUDA ---
# The plain base, not nvidia/cuda: torch's packages carry CUDA's libraries, and the driver is the host's.
FROM runtime AS runtime-cuda
# Triton compiles its launchers in C when a kernel is first used. That is its `gcc`, not the operators' g++.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
# What NVIDIA's container runtime reads: which devices, and that they are computed on.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    TRITON_CACHE_DIR=/var/cache/hope/triton
COPY --from=build-cpu /srv/hope/model /srv/hope/model
COPY --from=build-cpu /srv/hope/cache /srv/hope/cache
COPY --from=build-cuda /srv/hope/venv /srv/hope/venv
USER 10001:10001

# --- image: CPU ---
# Last, so that it is what is built where no target is named.
FROM runtime AS runtime-cpu
# Apart and in order of how seldom they change, so that an upgrade of the code moves little.
COPY --from=build-cpu /srv/hope/model /srv/hope/model
COPY --from=build-cpu /srv/hope/cache /srv/hope/cache
COPY --from=build-cpu /srv/hope/venv /srv/hope/venv
USER 10001:10001
