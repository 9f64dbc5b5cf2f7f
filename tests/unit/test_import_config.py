# SPDX-License-Identifier: BSD-3-Clause
"""``ppctl import-config``: the service's variables become two valid files, and what is left is named."""

import os
from pathlib import Path

import pytest
import yaml

from ppdaemon.bridge.config import BridgeConfig
from ppdaemon.config import NodeConfig
from ppdaemon.ctl import cli, target
from ppdaemon.ctl.environmentfile import read_environment
from ppdaemon.ctl.importconfig import CARRIED, NOT_CARRIED, imported
from ppdaemon.errors import ConfigError
from ppdaemon.relay.config import RelayConfig
from ppdaemon.yamlfile import load_model

ROOT = Path(__file__).parents[2]
MAIN = """\
- survey: BLOCK-365
  ra: {min: 340.0, max: 20.0}
  coord-type: Boresight
  pipelines: ["${AP_PIPE_DIR}/pipelines/LSSTCam/ApPipe.yaml", /p/SingleFrame.yaml]
- survey: cwfs
  pipelines: None
- pipelines: [/p/Isr.yaml]"""

VARIABLES = {
    "RUBIN_INSTRUMENT": "LSSTCam",
    "SKYMAP": "lsst_cells_v1",
    "WORKER_TIMEOUT": "900",
    "CENTRAL_REPO": "s3://profile@bucket/central",
    "READ_CENTRAL_REPO": "/repo/replica",
    "S3_ENDPOINT_URL": "https://s3.example",
    "IMAGE_BUCKET": "rubin-raws",
    "IMAGE_TIMEOUT": "30",
    "KAFKA_CLUSTER": "kafka.example:9092",
    "BUCKET_TOPIC": "rubin-prompt-processing",
    "PREPROCESSING_PIPELINES_CONFIG": "- pipelines: [/p/Preprocessing.yaml]",
    "MAIN_PIPELINES_CONFIG": MAIN,
    "MESSAGE_EXPIRATION": "1800",
    "WORKER_RESTART_FREQ": "50",
    "PRELOAD_PADDING": "50.1",
    "CONFIG_APDB": "s3://bucket/apdb.yaml",
    "EXPORT_TYPE_REGEXP": '- ".*_metadata"\n- difference_image',
    "SERVICE_LOG_LEVELS": ".=WARNING lsst.isr=DEBUG timer.lsst=VERBOSE",
    "USE_KAFKA_BUTLER_WRITER": "1",
    "BUTLER_WRITER_KAFKA_CLUSTER": "writer.example:9093",
    "BUTLER_WRITER_KAFKA_USERNAME": "prompt",
    "BUTLER_WRITER_KAFKA_PASSWORD": "hunter2",
    "BUTLER_WRITER_KAFKA_TOPIC": "butler-writer",
    "SASQUATCH_URL": "https://sasquatch.example/rest",
    "SASQUATCH_TOKEN": "hunter3",
    "HOME": "/home/lsst",
}
FAN_OUT = {
    "detectors": {
        "LSSTCam": {number: number not in (3, 120) for number in range(189)},
        "LATISS": {"0": True},
        "HSC": {0: False},
    },
    "knative-urls": {},
}


@pytest.fixture
def run(tmp_path, capsys):
    """Run the command with files of this content; return exit status, stderr and both files as text."""

    def run(environment, fan_out=FAN_OUT, options=()):
        (tmp_path / "service.env").write_text(environment)
        (tmp_path / "fan-out.yaml").write_text(yaml.safe_dump(fan_out))
        options = [*options, *(["--fan-out", str(tmp_path / "fan-out.yaml")] if fan_out else [])]
        code = cli._run(["import-config", str(tmp_path / "service.env"), "--output", str(tmp_path), *options])
        files = [path.read_text() for path in sorted(tmp_path.glob("pp*.yaml"))]
        return code, capsys.readouterr().err, files

    return run


def dumped(variables):
    return "\n".join(f"{name}={value}" for name, value in variables.items()) + "\n"


def as_kubernetes(variables):
    secret = {
        "name": "BUTLER_WRITER_KAFKA_PASSWORD",
        "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}},
    }
    environment = [{"name": name, "value": value} for name, value in variables.items()]
    container = {"name": "prompt", "image": "x", "env": [*environment, secret]}
    deployment = {"kind": "Deployment", "spec": {"template": {"spec": {"containers": [container]}}}}
    return yaml.safe_dump_all([{"kind": "Service"}, deployment])


def without_secret(variables):
    return variables | {"BUTLER_WRITER_KAFKA_PASSWORD": ""}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (dumped(VARIABLES), VARIABLES),
        ("\0".join(f"{name}={value}" for name, value in VARIABLES.items()), VARIABLES),
        (as_kubernetes(without_secret(VARIABLES)), without_secret(VARIABLES)),
        ("# first\nexport SKYMAP='a b'\nSASQUATCH_URL=\n# more\n", {"SKYMAP": "a b", "SASQUATCH_URL": ""}),
        (yaml.safe_dump({"kind": "ConfigMap", "data": {"SKYMAP": "x"}}), {"SKYMAP": "x"}),
        ("  # first\r\nSKYMAP=a=b\r\nf%%=() {\r\n x\r\n}\r\n", {"SKYMAP": "a=b", "f%%": "() {\n x\n}"}),
        (yaml.safe_dump({"kind": "ConfigMap", "data": ["SKYMAP"]}), {}),
    ],
    ids=["env", "env -0", "deployment", "dotenv", "config map", "CRLF", "other config map"],
)  # fmt: skip
def test_an_environment_is_read_in_each_of_its_forms(text, expected):
    assert read_environment(text) == expected


def test_both_files_are_valid_and_have_what_the_service_had(run, tmp_path):
    code, _, _ = run(dumped(VARIABLES))
    assert code == 0
    environment = {
        "AP_PIPE_DIR": "/ap_pipe",
        "BUTLER_WRITER_KAFKA_USERNAME": "u",
        "BUTLER_WRITER_KAFKA_PASSWORD": "p",
    }
    node, _ = load_model(tmp_path / "ppdaemon.yaml", NodeConfig, environment)
    relay, _ = load_model(tmp_path / "pprelay.yaml", RelayConfig, {})
    assert relay.instruments.keys() == {"LSSTCam", "LATISS"}
    assert relay.instruments["LSSTCam"].detectors == node.node.instruments["LSSTCam"]
    assert len(node.node.instruments["LSSTCam"]) == 187
    assert (node.node.expiry_s, relay.expiry_s) == (1800.0, 1800.0)
    butler = node.butler
    assert (butler.central, butler.read, butler.skymap) == (
        "s3://profile@bucket/central",
        "/repo/replica",
        "lsst_cells_v1",
    )
    assert [rule.pipelines for rule in node.pipelines.main] == [
        ("/ap_pipe/pipelines/LSSTCam/ApPipe.yaml", "/p/SingleFrame.yaml"),
        (),
        ("/p/Isr.yaml",),
    ]
    assert node.pipelines.main[0].coord_type == "boresight"
    assert node.pipelines.overrides == {"parameters:apdb_config": "s3://bucket/apdb.yaml"}
    assert node.engine.no_return == ("lsst.ap.association.DiaPipelineTask",)
    assert node.export.types == (".*_metadata", "difference_image")
    assert node.export.writer.to == "kafka://writer.example:9093/butler-writer"
    assert node.export.writer.options["sasl.password"] == "p"
    assert node.publish[0].to == "https://sasquatch.example/rest"
    assert node.workers.times.run_s == 900.0
    assert (node.workers.recycle_visits, node.preload.padding_arcsec) == (50, 50.1)
    assert node.arrivals.image_timeout_s == 30.0
    assert node.arrivals.remote[0].uri == "s3://rubin-raws"
    assert (node.log.level, node.log.levels) == ("WARNING", {"lsst.isr": "DEBUG"})


@pytest.mark.parametrize(
    ("changes", "kafka", "words"),
    [
        (
            {},
            ("kafka.example:9092", ("rubin-prompt-processing",), "latest"),
            "BUCKET_TOPIC in a group of its",
        ),
        (
            {"BUCKET_NOTIFICATION_KAFKA_OFFSET_RESET": "earliest"},
            ("kafka.example:9092", ("rubin-prompt-processing",), "earliest"),
            "BUCKET_TOPIC in a group of its own",
        ),
        ({"KAFKA_CLUSTER": ""}, (None, (), None), "let the bucket send them to it by HTTP"),
    ],
)
def test_raws_of_a_bucket_come_by_a_bridge(run, tmp_path, changes, kafka, words):
    code, _, (_, text, _) = run(dumped(VARIABLES | changes))
    assert (code, words in " ".join(text.replace("#", " ").split())) == (0, True)
    node = yaml.safe_load(text)
    bridge, _ = load_model(tmp_path / "ppbridge.yaml", BridgeConfig, {})
    assert node["arrivals"]["bridges"] == [bridge.nodes]
    assert "subscribe" not in node["arrivals"]
    found = bridge.kafka
    assert (found.brokers, found.topics, found.options.get("auto.offset.reset")) == kafka
    assert bridge.control == target.BRIDGE_RUN


def test_without_a_bucket_there_is_no_bridge(run, tmp_path):
    assert run(dumped(VARIABLES | {"IMAGE_BUCKET": ""}))[0] == 0
    assert not (tmp_path / "ppbridge.yaml").exists()
    assert "bridges" not in yaml.safe_load((tmp_path / "ppdaemon.yaml").read_text())["arrivals"]


def test_what_is_not_carried_over_is_a_comment_and_secrets_are_nowhere(run):
    _, _, (_, node, relay) = run(dumped(VARIABLES | {"SOMETHING_NEW": "1"}))
    comments = [line for line in node.splitlines() if line.startswith("#")]
    for name in ("IMAGE_BUCKET", "S3_ENDPOINT_URL", "SASQUATCH_URL", "timer.lsst=VERBOSE", "SOMETHING_NEW"):
        assert any(name in line for line in comments), name
    assert "hunter" not in node + relay


@pytest.mark.parametrize(
    ("host", "url"),
    [("localhost", "redis://localhost:6379"), ("localhost:6380", "redis://localhost:6380")],
)
def test_visits_come_from_the_stream_of_the_service_if_it_has_one(run, tmp_path, host, url):
    stream = {
        "REDIS_STREAM_HOST": host,
        "REDIS_STREAM_NAME": "instrument:lsstcam",
        "REDIS_STREAM_CONSUMER_GROUP": "lsstcam_consumer_group",
    }
    code, err, (_bridge, _node, relay) = run(dumped(VARIABLES | stream))
    assert (code, err) == (0, "")
    assert "no relay is needed" in " ".join(relay.split("\n#  "))
    environment = {
        "AP_PIPE_DIR": "/a",
        "BUTLER_WRITER_KAFKA_USERNAME": "u",
        "BUTLER_WRITER_KAFKA_PASSWORD": "p",
    }
    config, _ = load_model(tmp_path / "ppdaemon.yaml", NodeConfig, environment)
    redis = config.redis
    assert (redis.url, redis.streams, redis.group) == (url, ("instrument:lsstcam",), "lsstcam_consumer_group")
    assert config.relay.address is None
    assert imported(VARIABLES).node["relay"] == {"address": "tcp://127.0.0.1:5571"}
    assert "redis" not in imported(VARIABLES).node


def test_a_password_in_an_address_and_lines_of_a_secret_are_nowhere(run):
    changes = {
        "CENTRAL_REPO": "postgresql://user:hunter4@host/repo",
        "SASQUATCH_URL": "https://:hunter5@host/",
        "KEY": "-----\nhunter6+=\nHunter7==\nend",
        "my.key": "hunter8",
    }
    code, err, (_, node, relay) = run(dumped(VARIABLES | changes))
    assert (code, err) == (0, "")
    assert "unter" not in node + relay
    assert "central: postgresql://user:${CENTRAL_REPO_PASSWORD}@host/repo" in node
    assert "CENTRAL_REPO_PASSWORD: write" in node


def test_a_variable_is_carried_over_or_not_but_never_both():
    assert not CARRIED.keys() & NOT_CARRIED.keys()
    # Each gives a key, or a reason for none.
    plain = {
        "MAIN_PIPELINES_CONFIG": "- pipelines: []",
        "EXPORT_TYPE_REGEXP": "- x",
        "SERVICE_LOG_LEVELS": "a=b",
    }
    for name in CARRIED:
        bare = imported({"RUBIN_INSTRUMENT": "LATISS"})
        one = imported(
            {"RUBIN_INSTRUMENT": "LATISS", name: plain.get(name, "1" if "CONFIG" not in name else "- a")}
        )
        assert (one.node, one.notes) != (bare.node, bare.notes), name


def test_the_documents_name_each_variable():
    page = (ROOT / "doc" / "operators" / "migration.rst").read_text()
    carried, _, others = page.partition("Not carried over")
    assert [name for name in CARRIED if f"``{name}``" not in carried] == []
    assert [name for name in NOT_CARRIED if f"``{name}``" not in others] == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"RUBIN_INSTRUMENT": ""}, "RUBIN_INSTRUMENT is missing"),
        ({"IMAGE_TIMEOUT": "soon"}, "IMAGE_TIMEOUT: could not convert string to float: 'soon'"),
        ({"MAIN_PIPELINES_CONFIG": "- ["}, "MAIN_PIPELINES_CONFIG: "),
        ({"EXPORT_TYPE_REGEXP": "Invalid item"}, "EXPORT_TYPE_REGEXP: is not a list in YAML"),
    ],
)
def test_a_wrong_value_is_named_and_nothing_is_written(run, changes, text):
    code, err, files = run("\0".join(f"{name}={value}" for name, value in (VARIABLES | changes).items()))
    assert (code, files) == (78, [])
    assert text in err


FAN_OUT_ENV = {
    "SUPPORTED_INSTRUMENTS": "LATISS LSSTCam",
    "KAFKA_CLUSTER": "events.example:9094",
    "CONSUMER_GROUP": "fan-out",
    "NEXT_VISIT_TOPIC": "lsst.sal.ScriptQueue.logevent_nextVisit",
    "OFFSET": "latest",
    "MESSAGE_EXPIRATION": "900",
    "KAFKA_SCHEMA_REGISTRY_URL": "https://user:hunter9@registry.example",
    "SASL_USERNAME": "prompt",
    "SASL_PASSWORD": "hunter9",
    "SASL_MECHANISM": "SCRAM-SHA-512",
    "SECURITY_PROTOCOL": "SASL_SSL",
}


def test_the_topics_of_the_fan_out_are_those_of_the_relay(run, tmp_path):
    (tmp_path / "fan-out.env").write_text(dumped(FAN_OUT_ENV))
    options = ["--fan-out-env", str(tmp_path / "fan-out.env")]
    code, err, (*_, relay) = run(dumped(VARIABLES), options=options)
    assert (code, err) == (0, "")
    assert "hunter" not in relay
    comments = [line for line in relay.splitlines() if line.startswith("#")]
    for text in ("ppdaemon-NAME", "right to read both", "SASL_PASSWORD must be", "kafka.registry_password"):
        assert any(text in line for line in comments), text
    environment = {"SASL_USERNAME": "u", "SASL_PASSWORD": "p"}
    config, _ = load_model(tmp_path / "pprelay.yaml", RelayConfig, environment)
    assert config.expiry_s == 900.0
    assert config.kafka.model_dump(include={"brokers", "topics", "registry"}) == {
        "brokers": "events.example:9094",
        "topics": (
            "lsst.sal.ScriptQueue.logevent_nextVisit",
            "lsst.sal.ScriptQueue.logevent_nextVisitCanceled",
        ),
        "registry": "https://registry.example",
    }
    assert config.kafka.options == {
        "security.protocol": "SASL_SSL",
        "sasl.mechanism": "SCRAM-SHA-512",
        "sasl.username": "u",
        "sasl.password": "p",
    }


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"NEXT_VISIT_TOPIC": ""}, "NEXT_VISIT_TOPIC missing: is it the fan-out's environment?"),
        ({"MESSAGE_EXPIRATION": "soon"}, "--fan-out-env: MESSAGE_EXPIRATION: could not convert"),
    ],
)
def test_what_is_wrong_in_the_fan_outs_environment_is_named(run, tmp_path, changes, text):
    (tmp_path / "fan-out.env").write_text(dumped(FAN_OUT_ENV | changes))
    code, err, files = run(dumped(VARIABLES), options=["--fan-out-env", str(tmp_path / "fan-out.env")])
    assert (code, files) == (78, [])
    assert text in err


def test_another_topic_needs_its_cancellations_by_hand():
    made = imported(VARIABLES, FAN_OUT, FAN_OUT_ENV | {"NEXT_VISIT_TOPIC": "test.next-visit"})
    assert made.relay["kafka"]["topics"] == ["test.next-visit"]
    assert "add the topic" in made.relay_notes["NEXT_VISIT_TOPIC"]


@pytest.mark.parametrize(
    "fan_out",
    [
        {"detectors": [1]},
        {"knative-urls": {}},
        {"detectors": {"LSSTCam": {"a": True}}},
        {"detectors": {"LSSTCam": {1.5: True}}},
        {"detectors": {"LSSTCam": {-1: True}}},
        {"detectors": {"LSSTCam": {0: "false"}}},
    ],
)
def test_a_file_that_is_no_fan_out_map_is_refused(run, fan_out):
    code, err, files = run(dumped(VARIABLES), fan_out)
    assert (code, files) == (78, [])
    assert "no map of detectors" in err


def test_a_fan_out_without_detectors_of_the_instrument_and_an_empty_one_are_refused(run, tmp_path):
    code, err, files = run(dumped(VARIABLES), {"detectors": {"LSSTCam": {0: False}}})
    assert (code, files) == (78, [])
    assert "no detector of LSSTCam is switched on" in err
    (tmp_path / "empty").touch()
    options = ["--fan-out", str(tmp_path / "empty"), "--output", str(tmp_path)]
    assert cli._run(["import-config", str(tmp_path / "service.env"), *options]) == 78


def test_yaml_of_any_depth_is_refused():
    for text in ("a: &a\n - *a\n", "[" * 500):
        with pytest.raises(ConfigError):
            read_environment(text)


def test_without_a_fan_out_the_camera_decides_and_existing_files_stay(run, tmp_path):
    assert run(dumped(VARIABLES), None)[0] == 0
    assert yaml.safe_load((tmp_path / "ppdaemon.yaml").read_text())["node"]["instruments"] == {
        "LSSTCam": "0-204"
    }
    os.unlink(tmp_path / "pprelay.yaml")
    code, err, _ = run(dumped(VARIABLES))
    assert code == 73
    assert "there already" in err
    assert not (tmp_path / "pprelay.yaml").exists()
    with pytest.raises(ConfigError, match="give its detectors as --fan-out"):
        imported({"RUBIN_INSTRUMENT": "HSC"})
