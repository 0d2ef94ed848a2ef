# The server; mount a model at /model, and give a key by VIRTUE_API_KEY or a mounted file:
#   docker build -t virtue-pl .
#   docker run -p 8000:8000 -e VIRTUE_API_KEY -v "$PWD/mini:/model:ro" virtue-pl
# With an index, and on a GPU; `docker stop` kills after 10 seconds what is not answered by then, unless -t says more:
#   docker run --gpus all -p 8000:8000 -e VIRTUE_API_KEY -v "$PWD/mini:/model:ro" -v "$PWD/runs/index:/index:ro" \
#     virtue-pl --model /model --index /index
FROM python:3.11-slim

ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
RUN pip install "torch>=2.14.1,<2.15" "torchvision>=0.29.1,<0.30"
WORKDIR /app
COPY pyproject.toml setup.cfg README.md LICENSE ./
COPY src ./src
RUN pip install ".[serve,search,sentence-transformers]" && useradd --create-home virtue
USER virtue
EXPOSE 8000
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m \
  CMD ["python", "-c", "import urllib.request as http; http.urlopen('http://127.0.0.1:8000/ready', timeout=4)"]
# As its own process, so that SIGTERM reaches it and what was accepted is answered.
ENTRYPOINT ["virtue-pl", "serve", "--host", "0.0.0.0"]
CMD ["--model", "/model"]
