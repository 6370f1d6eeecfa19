# The image of a run: `docker build -t scholarch:0.1.0 .`, or with buildah.
# BASE is any image with Python 3.11 or newer at /usr/bin/python3 or in PATH, the same in both stages.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

FROM ${BASE} AS build
WORKDIR /src
COPY .ci/bring_uv.py .ci/
RUN python3 .ci/bring_uv.py /opt/uv
ENV PATH=/opt/uv/bin:$PATH \
    UV_PROJECT_ENVIRONMENT=/opt/scholarch \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
COPY pyproject.toml uv.lock README.md LICENSE ./
# The packages of the lock file first: a change of the source does not install them again.
RUN uv sync --frozen --no-dev --no-install-project
COPY platform platform
COPY jobs jobs
COPY operators operators
RUN uv sync --frozen --no-dev --no-editable

FROM ${BASE}
COPY --from=build /opt/scholarch /opt/scholarch
ENV PATH=/opt/scholarch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /tmp
CMD ["scholarch", "--help"]
