"""The manifests against the schemas of Kubernetes' API, and against what JAX and this program ask of them."""

import pathlib

import pytest

from bn_inception import cluster

pytestmark = pytest.mark.kubernetes
yaml = pytest.importorskip("yaml")
MANIFESTS = ("kubernetes.yaml", "gke_tpu.yaml")


def load(repository: pathlib.Path, name: str) -> list[dict]:
  return list(yaml.safe_load_all((repository / "scripts/launch" / name).read_text()))


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_follows_the_schemas(repository, name):
  validate = pytest.importorskip("kubernetes_validate")
  for document in load(repository, name):
    validate.validate(document, "1.31", strict=True)


@pytest.mark.parametrize("name", MANIFESTS)
def test_job_is_what_jaxs_detection_understands(repository, name):
  """An Indexed Job, as many pods at once as there are, in the headless service that is its subdomain."""
  documents = load(repository, name)
  job, service = (next(one for one in documents if one["kind"] == kind) for kind in ("Job", "Service"))
  spec = job["spec"]
  assert spec["completionMode"] == "Indexed" and spec["parallelism"] == spec["completions"]
  assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
  assert service["spec"]["clusterIP"] == "None"
  assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}


@pytest.mark.parametrize("name", MANIFESTS)
def test_exit_codes_are_told_apart(repository, name):
  job = next(one for one in load(repository, name) if one["kind"] == "Job")
  rules = {
    code: rule["action"]
    for rule in job["spec"]["podFailurePolicy"]["rules"]
    if "onExitCodes" in rule
    for code in rule["onExitCodes"]["values"]
  }
  assert rules == {2: "FailJob", 3: "FailJob", 75: "Ignore", 143: "Ignore"}
  [container] = job["spec"]["template"]["spec"]["containers"]
  assert {
    rule["onExitCodes"]["containerName"] for rule in job["spec"]["podFailurePolicy"]["rules"] if "onExitCodes" in rule
  } == {container["name"]}


def test_a_missing_package_is_named(monkeypatch):
  monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
  monkeypatch.setattr(cluster.importlib.util, "find_spec", lambda name: None)
  error = ValueError("coordinator_address should be defined.")
  assert "pip install -e '.[kubernetes]'" in cluster._not_found(error)
