# Two images from one file: an edge device's, without torch and onnx, and a server's.
#   docker build --target edge -t offramp-edge .
#   docker build --target server -t offramp-server .
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
WORKDIR /source
COPY pyproject.toml README.md LICENSE constraints.txt ./
COPY src src
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels . \
    && python -m venv --without-pip /opt/offramp

FROM build AS edge-packages
# Metrics and traces of an edge: --build-arg EXTRAS=[observe]
ARG EXTRAS=
RUN pip --python /opt/offramp/bin/python install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)$EXTRAS"

FROM build AS server-packages
RUN pip --python /opt/offramp/bin/python install --no-cache-dir -c constraints.txt "$(echo /wheels/*.whl)[serve,observe]"

FROM python:${PYTHON}-slim AS base
ENV PATH=/opt/offramp/bin:$PATH
# A number, so that a cluster can tell that it is not root.
USER 1000:1000
WORKDIR /data
ENTRYPOINT ["offramp"]

FROM base AS edge
COPY --from=edge-packages /opt/offramp /opt/offramp
CMD ["--help"]

FROM base AS server
COPY --from=server-packages /opt/offramp /opt/offramp
EXPOSE 8001 8000
HEALTHCHECK --start-period=30s CMD ["python", "-c", \
    "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=2)"]
CMD ["serve", "/bundle", "--host", "0.0.0.0", "--http-port", "8000"]
