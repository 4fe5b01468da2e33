"""What a manifest of ours may use of KubeRay's RayJob: fields by hand, and the CRD read strictly.

From the CRD `rayjobs.ray.io`, version v1, of KubeRay 1.7.0 (helm-chart/kuberay-operator/crds), and
from what its operator refuses beyond that (ValidateRayJobSpec). The CRD itself is 1.4 MB.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


DnsLabel = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$", max_length=63)]
Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?(m|[KMGT]i?)?$")]


class Mount(Strict):
    name: DnsLabel
    mountPath: Annotated[str, Field(pattern="^/")]
    readOnly: bool = False


class Port(Strict):
    name: Annotated[str, Field(max_length=15)]
    containerPort: Annotated[int, Field(ge=1, le=65535)]


class SecretKey(Strict):
    name: DnsLabel
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKey


class Variable(Strict):
    name: str
    valueFrom: ValueFrom


class PodResources(Strict):
    requests: dict[str, Quantity]
    limits: dict[str, Quantity]


class Container(Strict):
    name: DnsLabel
    image: str
    ports: list[Port] = []
    env: list[Variable] = []
    resources: PodResources
    volumeMounts: list[Mount]


class ConfigMap(Strict):
    name: DnsLabel


class Claim(Strict):
    claimName: DnsLabel


class Volume(Strict):
    name: DnsLabel
    configMap: ConfigMap | None = None
    persistentVolumeClaim: Claim | None = None


class PodSpec(Strict):
    containers: Annotated[list[Container], Field(min_length=1)]
    volumes: list[Volume]


class Template(Strict):
    spec: PodSpec


class Group(Strict):
    rayStartParams: dict[str, str]
    template: Template


class WorkerGroup(Group):
    groupName: DnsLabel
    replicas: Annotated[int, Field(ge=0)]
    minReplicas: Annotated[int, Field(ge=0)]
    maxReplicas: Annotated[int, Field(ge=1)]


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: Annotated[int, Field(ge=0)]


class ClusterSpec(Strict):
    rayVersion: Annotated[str, Field(pattern=r"^\d+\.\d+\.\d+$")]
    enableInTreeAutoscaling: bool
    autoscalerOptions: AutoscalerOptions
    headGroupSpec: Group
    workerGroupSpecs: list[WorkerGroup]


class JobSpec(Strict):
    entrypoint: str
    backoffLimit: Annotated[int, Field(ge=0)]
    # KubeRay refuses a time to live where the cluster is to stay.
    shutdownAfterJobFinishes: Literal[True]
    ttlSecondsAfterFinished: Annotated[int, Field(ge=0)]
    rayClusterSpec: ClusterSpec


class Metadata(Strict):
    name: Annotated[DnsLabel, Field(max_length=47)]


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


def closed(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that refuses fields it does not know, as ``kubectl apply`` does."""
    told = {name: closed(inner) for name, inner in schema.get("properties", {}).items()}
    result = {**schema, "properties": told} if told else dict(schema)
    if told and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        result["additionalProperties"] = closed(schema["additionalProperties"])
    if "items" in schema:
        result["items"] = closed(schema["items"])
    return result
