# Restores a folder of photographs, see docs/restore.md:
#   docker build -t restore_jax .
#   docker run --rm -v "$PWD/photographs:/in:ro" -v "$PWD/restored:/out" restore_jax /in -o /out
# For an NVIDIA GPU: docker build --build-arg DEVICE=cuda12 -t restore_jax:cuda12 .
# requirements/lock-restore.txt is for this version of Python.
FROM python:3.11-slim

ENV PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_ROOT_USER_ACTION=ignore \
    PYTHONUNBUFFERED=1 \
    XDG_CACHE_HOME=/cache

# Compiled programs are kept here. Any user may write, as `docker run --user` chooses the user.
RUN useradd --no-create-home --uid 1000 restore \
    && install --directory --mode=1777 /cache

WORKDIR /src
COPY requirements/lock-restore.txt requirements/
RUN pip install --require-hashes --requirement requirements/lock-restore.txt

ARG DEVICE=cpu
RUN if [ "$DEVICE" != cpu ]; then \
      pip install "jax[$DEVICE]==$(python -c 'import jax; print(jax.__version__)')"; \
    fi

COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY restore_jax restore_jax
RUN pip install --no-deps .

USER restore
WORKDIR /tmp
VOLUME /cache
ENTRYPOINT ["restore-jax", "restore"]
CMD ["--help"]
