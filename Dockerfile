# syntax=docker/dockerfile:1
# `hpml serve` in a container:  docker build -t hpml-serve .                              for a CPU
#                               docker build -t hpml-serve:cuda --build-arg VARIANT=cuda .
# PyPI's torch brings CUDA's libraries (5 GB). A small CPU image takes the wheels of PyTorch's own CPU build from a folder instead:
# put torch and torchvision into wheels/ first (`pip download`, as pytorch.org says for CPU).
# The second stage holds the environment and the package, no compiler and no pip cache; it runs as a user without rights on a read-only
# file system, and writes only to /srv/hpml (runs, caches) and /tmp.
ARG PYTHON=3.12
ARG VARIANT=cpu

FROM python:${PYTHON}-slim AS build
ARG VARIANT
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/hpml
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY hpml hpml
COPY wheel[s] wheels
RUN if [ "$VARIANT" = cpu ] && [ -d wheels ]; then /opt/hpml/bin/python -m pip install wheels/*.whl; fi
RUN /opt/hpml/bin/python -m pip install '.[serve]'

FROM python:${PYTHON}-slim
RUN groupadd --gid 10001 hpml && useradd --uid 10001 --gid hpml --home-dir /srv/hpml --no-create-home --shell /usr/sbin/nologin hpml \
    && mkdir /srv/hpml && chown hpml:hpml /srv/hpml
COPY --from=build /opt/hpml /opt/hpml
ENV PATH=/opt/hpml/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE HOME=/srv/hpml \
    HPML_RESULTS=/srv/hpml/results HPML_CACHE=/srv/hpml/cache HPML_DATA=/srv/hpml/data HPML_WEIGHTS=/srv/hpml/weights
USER hpml
WORKDIR /srv/hpml
VOLUME /srv/hpml
EXPOSE 8000
# The first start makes the engine once; a later one is ready in moments.
HEALTHCHECK --interval=10s --timeout=3s --start-period=300s --retries=3 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["hpml", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD ["--workload", "resnet50"]
