FROM python:3.11-slim-bookworm AS build

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build
COPY pyproject.toml constraints.txt ./

# The plain package index has CUDA builds for Linux: https://pypi.org/simple instead makes the GPU image.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-deps --index-url "$TORCH_INDEX" "$(grep '^torch==' constraints.txt)"

# Dependencies apart from the sources: a changed source file costs one small layer. What torch needs comes with them.
# With "trackers" among the extras, jobs can report to TensorBoard, MLflow and Weights & Biases.
ARG EXTRAS="data finetune gguf onnx service tracing"
RUN python -c 'import sys, tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
extras = p["optional-dependencies"]; print(*p["dependencies"], *sum((extras[name] for name in sys.argv[1:]), []), sep="\n")' \
    $EXTRAS > requirements.txt \
    && pip install --constraint constraints.txt --requirement requirements.txt

COPY LICENSE README.md ./
COPY factor_search factor_search
COPY storage storage
COPY workers workers
COPY api api
RUN pip wheel --no-deps --wheel-dir /wheel .


FROM python:3.11-slim-bookworm

RUN useradd --system --uid 10001 --home-dir /var/lib/factor-search --create-home factor-search \
    && install --directory --owner factor-search /cache/factor-search /cache/huggingface /made
COPY --from=build /venv /venv
COPY --from=build /wheel /wheel
ENV PATH=/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    FACTOR_SEARCH_CACHE=/cache/factor-search \
    FACTOR_SEARCH_WORK=/made \
    HF_HOME=/cache/huggingface \
    RAY_USAGE_STATS_ENABLED=0 \
    RAY_OBJECT_STORE_BYTES=1000000000
RUN pip install --no-cache-dir --no-deps --no-index /wheel/*.whl
COPY docker/join-ray.sh /usr/local/bin/join-ray

USER factor-search
WORKDIR /var/lib/factor-search
EXPOSE 8400
HEALTHCHECK --interval=10s --timeout=5s --start-period=90s --retries=6 \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8400/readyz', timeout=4)"]
CMD ["factor-search", "serve", "--host=0.0.0.0"]
