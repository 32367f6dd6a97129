# One image for the API, the supervisor and Flower; the command in docker-compose.yml decides which of them runs.
FROM python:3.12-slim AS build
WORKDIR /app
RUN python -m venv --without-pip /opt/ownpod
COPY requirements.txt .
RUN python -m pip --python /opt/ownpod/bin/python install --no-cache-dir --no-deps --require-hashes -r requirements.txt
COPY pyproject.toml README.md LICENSE ./
COPY ownpod ownpod
RUN python -m pip --python /opt/ownpod/bin/python install --no-cache-dir --no-deps .

FROM python:3.12-slim
RUN useradd --uid 1000 --create-home --skel /dev/null --home-dir /app ownpod
COPY --from=build /opt/ownpod /opt/ownpod
ENV PATH=/opt/ownpod/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /app
COPY workers.yaml celeryconfig.py wsgi.py ./
USER ownpod
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["ownpod", "api", "--host", "0.0.0.0"]
