# Two images: `frontdoor` has no engine in it (front door, gateway, simulator), `worker` has all.
#
#   docker build --target frontdoor -t penstock-frontdoor .
#   docker build --target worker -t penstock-worker .
#   docker build --target worker --build-arg PENSTOCK_BUILD=gpu -t penstock-worker-gpu .
#
# A package index of your own is a setting of the base image, in /etc/pip.conf and
# /etc/uv/uv.toml: --build-arg BASE=your/python.
ARG BASE=python:3.11-slim


FROM ${BASE} AS tools
WORKDIR /src
COPY pyproject.toml bootstrap.py ./
RUN python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir "$(python3 -c 'import bootstrap; print(bootstrap.UV)')" \
    && python3 -m venv --without-pip /opt/penstock
ENV PATH="/opt/tools/bin:${PATH}" \
    UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CACHE=1 \
    UV_PYTHON=/opt/penstock/bin/python


FROM tools AS wheel
COPY . .
RUN uv build --wheel --out-dir /dist


FROM tools AS frontdoor-packages
RUN uv pip install -r pyproject.toml


FROM tools AS worker-packages
ARG PENSTOCK_BUILD=cpu
# Where torch's CPU wheels are looked for beside the package index; empty: nowhere.
# Left alone, it is what `make setup` uses.
ARG PENSTOCK_TORCH_INDEX
RUN python3 -c "import bootstrap as b; print(*b.NEVER['${PENSTOCK_BUILD}'], sep='\n')" > excludes.txt \
    && if [ "${PENSTOCK_BUILD}" = cpu ]; then \
         UV_INDEX="$(python3 -c 'import bootstrap; print(bootstrap.torch_index())')"; export UV_INDEX; \
       fi \
    && uv pip install --index-strategy unsafe-best-match --excludes excludes.txt -r pyproject.toml \
         --extra "$(python3 -c "import bootstrap as b; print(b.EXTRA['${PENSTOCK_BUILD}'])")"


FROM ${BASE} AS runtime
ARG VERSION=dev
LABEL org.opencontainers.image.title="Penstock" \
      org.opencontainers.image.description="KServe v2 inference server for language models" \
      org.opencontainers.image.version="${VERSION}"
RUN groupadd --gid 10001 penstock \
    && useradd --uid 10001 --gid 10001 --create-home --shell /usr/sbin/nologin penstock
# USER and HOME also for a uid that the image does not know: torch asks for the name.
ENV PATH="/opt/penstock/bin:${PATH}" \
    HOME=/home/penstock \
    USER=penstock \
    PYTHONDONTWRITEBYTECODE=1 \
    PENSTOCK_HOST=0.0.0.0
WORKDIR /home/penstock
EXPOSE 8000 8001 8002
STOPSIGNAL SIGTERM
# Asks the status port: set another one by PENSTOCK_METRICS_PORT, which this reads too.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python3", "-c", "import http.client, os; \
asked = http.client.HTTPConnection('127.0.0.1', int(os.environ.get('PENSTOCK_METRICS_PORT', '8002')), timeout=4); \
asked.request('GET', '/ready'); \
raise SystemExit(asked.getresponse().status != 200)"]
ENTRYPOINT ["penstock"]


FROM runtime AS frontdoor
COPY --from=frontdoor-packages /opt/penstock /opt/penstock
# A layer of its own: a change of the project moves kilobytes, not the packages below.
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/tools/bin/uv pip install --no-cache --no-deps --python /opt/penstock/bin/python \
      --compile-bytecode /dist/*.whl
USER 10001:10001
CMD ["frontend"]


FROM runtime AS worker
ARG PENSTOCK_BUILD=cpu
# libnuma: vLLM's kernels are linked to it. gcc: on a GPU Triton compiles its launchers as it runs.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends libnuma1 \
    && if [ "${PENSTOCK_BUILD}" = gpu ]; then \
         apt-get install -y --no-install-recommends gcc libc6-dev; \
       fi \
    && rm -rf /var/lib/apt/lists/*
COPY --from=worker-packages /opt/penstock /opt/penstock
RUN --mount=type=bind,from=tools,source=/opt/tools,target=/opt/tools \
    --mount=type=bind,from=wheel,source=/dist,target=/dist \
    /opt/tools/bin/uv pip install --no-cache --no-deps --python /opt/penstock/bin/python \
      --compile-bytecode /dist/*.whl
USER 10001:10001
CMD ["worker", "/mnt/models"]
