# The image of a run, of the operator and of MLflow: `docker build -t scholarch:0.1.0 .`, or with buildah.
# BASE is any image with Python 3.11 or newer at /usr/bin/python3 or in PATH.
ARG BASE=docker.io/library/python:3.11-slim-bookworm

# The packages of the lock file first: a change of the source does not install them again.
FROM ${BASE} AS packages
COPY .ci/bring_uv.py /opt/uv/
RUN python3 /opt/uv/bring_uv.py /opt/uv
ENV UV_PROJECT_ENVIRONMENT=/opt/scholarch \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1
# Packages that a cluster without GPUs can do without, e.g. "triton nvidia-cusolver".
ARG LEAVE_OUT=""
# 0 where the build has uv's cache mounted at /root/.cache/uv.
ARG UV_NO_CACHE=1
COPY pyproject.toml uv.lock /opt/lock/
RUN cd /opt/lock && /opt/uv/bin/uv sync --frozen --no-dev --extra server --no-install-project \
    $(for name in $LEAVE_OUT; do echo "--no-install-package $name"; done)

FROM packages AS project
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY platform platform
COPY jobs jobs
COPY operators operators
RUN /opt/uv/bin/uv build --quiet --wheel --out-dir /wheel \
    && /opt/uv/bin/uv pip install --quiet --no-deps --python /opt/scholarch/bin/python --prefix /project /wheel/*.whl

# No second copy of the packages: a change of the source is a layer of its own, of some megabytes.
FROM packages
COPY --from=project /project /opt/scholarch
ENV PATH=/opt/scholarch/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    LOGNAME=scholarch \
    MPLCONFIGDIR=/tmp/matplotlib
USER 10001:10001
WORKDIR /tmp
CMD ["scholarch", "--help"]
