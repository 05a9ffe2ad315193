# Serves an ear on port 8000.
#
#     docker build -t ossicle .                             for CPUs
#     docker build -t ossicle --build-arg TORCH=cuda .      for NVIDIA GPUs
#     docker run -p 8000:8000 -v ./my-ear:/ear:ro -v models:/models ossicle serve /ear --host 0.0.0.0
#
# With a GPU, add --gpus all to the last line. Without an ear, the embedded one is served. The volume `models` keeps the
# encoder and the LLM that an ear names.
FROM python:3.13-slim-bookworm AS build
ARG TORCH=cpu
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
# PyTorch's own index has torch for CPUs, and not every version of what torch needs: that comes from PyPI.
RUN python -m venv /opt/ossicle \
    && case "$TORCH" in \
        cpu) /opt/ossicle/bin/pip install --no-cache-dir --no-deps -c constraints.txt torch \
            --index-url https://download.pytorch.org/whl/cpu ;; \
        cuda) /opt/ossicle/bin/pip install --no-cache-dir -c constraints.txt torch ;; \
        *) echo "TORCH is $TORCH, expected cpu or cuda" >&2; exit 1 ;; \
    esac \
    && /opt/ossicle/bin/pip install --no-cache-dir -c constraints.txt ".[gguf]"

FROM python:3.13-slim-bookworm
COPY --from=build /opt/ossicle /opt/ossicle
ENV PATH=/opt/ossicle/bin:$PATH HF_HOME=/models NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
RUN useradd --uid 1000 --create-home ossicle && install -d -o ossicle /models
USER 1000
WORKDIR /home/ossicle
VOLUME /models
EXPOSE 8000
# Loading a large LLM takes minutes, its first download more.
HEALTHCHECK --start-period=10m --interval=30s --timeout=5s \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["ossicle"]
CMD ["serve", "pocket/ear", "--host", "0.0.0.0"]
