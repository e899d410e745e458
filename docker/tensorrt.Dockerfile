# TensorRT on an NVIDIA GPU: builds engine sets from bundles, samples from them, and serves them.
#   docker build --file docker/tensorrt.Dockerfile --tag eecompile-tensorrt .
#   docker run --rm --gpus all --volume "$PWD/out:/home/eecompile/out" \
#       eecompile-tensorrt build out/fashion-dit/bundle --target tensorrt-fp16
# The driver on the machine must support the CUDA version of the base.
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE} AS build
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 python3-venv \
    && rm --recursive --force /var/lib/apt/lists/*
WORKDIR /source
COPY . .
# TensorRT's libraries are on NVIDIA's package index. Half precision is ModelOpt's work, which
# imports PyTorch: its CPU build is enough, and the smallest.
RUN python3 -m venv /opt/eecompile \
    && /opt/eecompile/bin/pip install --no-cache-dir --constraint constraints.txt \
        --extra-index-url https://pypi.nvidia.com \
        --extra-index-url https://download.pytorch.org/whl/cpu \
        '.[cpu,serve,tensorrt]'

FROM ${BASE}
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends python3 \
    && rm --recursive --force /var/lib/apt/lists/* \
    && useradd --create-home --uid 10001 eecompile
COPY --from=build /opt/eecompile /opt/eecompile
USER 10001
WORKDIR /home/eecompile
ENV PATH=/opt/eecompile/bin:$PATH
ENTRYPOINT ["eecompile"]
CMD ["--help"]
