"""deploy/: what the Dockerfile and compose.yaml name exists, their values are ones that the gateway takes, and the tree
that the image has runs without writing to itself. There is no Docker here: its own files are read instead.

compose_spec.json is the schema of docker-compose 1.29.2 (Apache License 2.0).
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from ipaddress import ip_address, ip_network
from pathlib import Path

import httpx
import jsonschema_rs
import pytest
import yaml
from django.core.management import get_commands, load_command_class

from tests.control_plane.test_configuration_page import read_by_settings
from tests.no_tls import NO_TLS
from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
# Of Python and the shell; everything else in an environment of ours is a setting.
NOT_OURS = {"PATH", "HOME", "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"}
KEY = "ahP7DieD7rNpTUa6No--iJpOaXY3TDK8dIjKg0cp-hI="
PATIENCE = 90


def instructions():
    """(word, rest) of each, with continued lines joined."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [tuple(line.split(maxsplit=1)) for line in lines]


def rests_of(word):
    return [rest for name, rest in instructions() if name == word]


def last_stage():
    found = instructions()
    return found[max(number for number, (word, _) in enumerate(found) if word == "FROM") :]


def environment_of_the_image():
    return dict(re.findall(r"([A-Z_]+)=(\S+)", " ".join(rests_of("ENV"))))


def copied():
    """(sources, target) of what comes from the repository."""
    return [(words[:-1], words[-1]) for rest in rests_of("COPY") if not (words := rest.split())[0].startswith("--from")]


def arguments_are_taken(command, arguments):
    assert command in get_commands(), command
    parser = load_command_class(get_commands()[command], command).create_parser("ollama-gateway", command)
    parser.parse_args(arguments)


# The image


def test_every_path_of_the_dockerfile_exists_and_is_let_through():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    for sources, _ in copied():
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in ignored, f"{source} does not reach the build"
    for line in ignored:
        if line.startswith("!"):
            assert (ROOT / line[1:]).exists(), line
    packages = {path.parent.name for path in ROOT.glob("*/apps.py")} | {"templates", "static"}
    assert packages <= {source for sources, _ in copied() for source in sources}


def test_what_is_installed_is_pinned():
    assert "--require-hashes" in " ".join(rests_of("RUN"))
    for image in rests_of("FROM"):
        assert re.match(r"python:3\.11-slim-bookworm( AS build)?$", image)


def test_it_runs_as_nobody_in_particular_with_its_data_on_volumes():
    assert re.fullmatch(r"[1-9]\d+:[1-9]\d+", [rest for word, rest in last_stage() if word == "USER"][-1])
    environment = environment_of_the_image()
    volumes = json.loads(rests_of("VOLUME")[0])
    assert {environment["DATA_DIR"], environment["SPOOL_DIR"]} == set(volumes)
    for volume in volumes:
        assert re.search(rf"install -d -m 700 -o (\d+) -g \1 [^&]*{volume}\b", " ".join(rests_of("RUN")))


def test_every_variable_and_command_of_the_dockerfile_is_known():
    assert set(environment_of_the_image()) <= NOT_OURS | set(read_by_settings())
    [entry], [command] = rests_of("ENTRYPOINT"), [rest for word, rest in instructions() if word == "CMD"]
    assert json.loads(entry) == ["ollama-gateway"]
    name, *arguments = json.loads(command)
    arguments_are_taken(name, arguments)
    assert "gateway_site.cli" in " ".join(rests_of("RUN"))


@pytest.fixture
def image(tmp_path):
    """The image's /app, as the COPY lines make it, and how it is started."""
    for sources, target in copied():
        if not target.startswith("/app"):
            continue
        for source in sources:
            place = tmp_path / target.lstrip("/")
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                place.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / source, place)
    return tmp_path


def everything_in(directory):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in directory.rglob("*")}


def test_the_image_takes_over_a_config_json_and_writes_to_its_volumes_only(image):
    port, data = free_port(), image / "volumes"
    data.mkdir()
    environment = {**environment_of_the_image(), "PORT": str(port), "PATH": os.environ["PATH"]}
    for name, value in environment.items():
        if value.startswith(("/data", "/spool")):
            environment[name] = f"{data}{value}"
    environment["PYTHONPATH"] = str(image / "app")
    # Where a container has it is the machine's own root here.
    config = image / "config.json"
    config.write_text(json.dumps({"ollamaAddresses": ["http://127.0.0.1:1"], "apiKeys": [KEY]}))
    before = everything_in(image / "app")
    command = json.loads(rests_of("CMD")[0])
    command[command.index("0.0.0.0")] = "127.0.0.1"
    with (image / "out").open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gateway_site.cli", *command],
            cwd="/", env={**environment, "CONFIG_FILE": str(config)}, stdout=out, stderr=out,
        )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, verify=NO_TLS, timeout=30) as client:
            deadline = time.monotonic() + PATIENCE
            while True:
                assert process.poll() is None, (image / "out").read_text()
                assert time.monotonic() < deadline, (image / "out").read_text()
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.1)
            assert client.get("/api/tags", headers={"authorization": KEY}).status_code == 200
            assert client.get("/api/tags").status_code == 401
            assert client.get("/static/gateway/gateway.css").status_code == 200
            assert client.get("/account/login/").status_code == 200
        healthy = json.loads(next(rest for word, rest in instructions() if word == "HEALTHCHECK").partition("CMD ")[2])
        subprocess.run([sys.executable, *healthy[1:]], env=environment, check=True, timeout=30)
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0
    unhealthy = subprocess.run([sys.executable, *healthy[1:]], env=environment, stderr=subprocess.DEVNULL, timeout=30)
    assert unhealthy.returncode != 0
    assert everything_in(image / "app") == before
    assert {path.name for path in data.iterdir()} <= {"data", "spool"}


# Compose


def compose(**variables):
    """compose.yaml with its variables filled in, their defaults where nothing is given."""

    def value(match):
        return variables.get(match[1]) or match[2] or ""

    return yaml.safe_load(re.sub(r"\$\{([A-Z_]+)(?::-([^}]*))?\}", value, (DEPLOY / "compose.yaml").read_text()))


def ours():
    return {name: service for name, service in compose()["services"].items() if service["image"] == "ollama-gateway"}


def test_compose_fits_the_schema_of_compose():
    schema = json.loads((Path(__file__).parent / "compose_spec.json").read_text())
    validator = jsonschema_rs.validator_for(schema)
    validator.validate(compose())
    with pytest.raises(jsonschema_rs.ValidationError):
        validator.validate({"services": {"gateway": {"imagee": "x"}}})


def test_every_variable_of_compose_is_in_the_example_and_has_its_default():
    used = dict(re.findall(r"\$\{([A-Z_]+)(?::-([^}]*))?\}", (DEPLOY / "compose.yaml").read_text()))
    example = dict(re.findall(r"^([A-Z_]+)=(.*)$", (DEPLOY / "env.example").read_text(), re.MULTILINE))
    assert example == used


def test_every_path_and_volume_of_compose_exists():
    found = compose()
    for name, service in found["services"].items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), f"{name}: {source}"
            else:
                assert source in found["volumes"], f"{name}: {source}"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()
        for other in service.get("depends_on", {}):
            assert other in found["services"]
    mentioned = {
        volume.split(":")[0] for service in found["services"].values() for volume in service.get("volumes", [])
    }
    assert set(found["volumes"]) <= mentioned
    assert (DEPLOY / "prometheus" / "prometheus.yml").exists()


def test_the_profiles_are_those_that_the_docs_name():
    profiles = {profile for service in compose()["services"].values() for profile in service.get("profiles", [])}
    assert profiles == {"demo", "monitoring", "proxy"}
    page = (ROOT / "docs" / "deployment.md").read_text()
    for profile in profiles:
        assert f"--profile {profile}" in page


def test_what_compose_starts_are_commands_of_ours_with_settings_of_ours():
    known = read_by_settings()
    for service in ours().values():
        command, *arguments = service["command"]
        arguments_are_taken(command, arguments)
        assert set(service["environment"]) <= set(known)


def test_the_gateway_takes_the_values_of_compose_and_they_pass_check_deploy(tmp_path):
    given = compose(SITE_URL="https://llm.example", ALLOWED_HOSTS="llm.example")["services"]["gateway"]["environment"]
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path), **given},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_all_that_is_ours_is_confined_and_keeps_its_spool():
    services = compose()["services"]
    for name, service in ours().items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"]
    spool = environment_of_the_image()["SPOOL_DIR"]
    assert f"spool:{spool}" in services["gateway"]["volumes"]
    assert int(services["gateway"]["stop_grace_period"].removesuffix("s")) >= read_by_settings()["DRAIN_SECONDS"] + 10
    assert all(
        port.startswith("127.0.0.1:") for name in ("gateway", "demo", "grafana") for port in services[name]["ports"]
    )


def test_the_addresses_that_are_believed_are_those_of_the_proxy_and_of_prometheus():
    services = compose()["services"]
    environment = services["gateway"]["environment"]
    address = services["proxy"]["networks"]["default"]["ipv4_address"]
    assert environment["TRUSTED_PROXIES"] == f"{address}/32"
    assert services["prometheus"]["networks"]["default"]["ipv4_address"] in environment["METRICS_NETWORKS"]
    [given] = compose()["networks"]["default"]["ipam"]["config"]
    fixed = [service["networks"]["default"]["ipv4_address"] for service in services.values() if "networks" in service]
    assert len(set(fixed)) == len(fixed) == 2
    for each in map(ip_address, fixed):
        assert each in ip_network(given["subnet"])
        assert each not in ip_network(given["ip_range"]), "Docker may have given it to another"
