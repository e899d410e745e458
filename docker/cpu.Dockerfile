# The runtime on a CPU: samples from an engine set, and serves it; no PyTorch.
#   docker build --file docker/cpu.Dockerfile --tag eecompile .
#   docker run --rm --publish 8000:8000 --volume "$PWD/out/fashion-dit/cpu:/engines:ro" \
#       eecompile serve /engines --host 0.0.0.0
FROM python:3.12-slim AS build
WORKDIR /source
COPY . .
RUN python -m venv /opt/eecompile \
    && /opt/eecompile/bin/pip install --no-cache-dir --constraint constraints.txt '.[cpu,serve]'

FROM python:3.12-slim
COPY --from=build /opt/eecompile /opt/eecompile
RUN useradd --create-home --uid 10001 eecompile
USER 10001
WORKDIR /home/eecompile
ENV PATH=/opt/eecompile/bin:$PATH
ENTRYPOINT ["eecompile"]
CMD ["--help"]
