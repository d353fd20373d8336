//! The messages of `proto/`, with the fields that one node's agent can fill, rendering as strict proto-JSON.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Serialize, Serializer};

use crate::identity::Mesh;

/// The test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PerformanceTestConfig {
    /// Release of the specification.
    pub smp_version: &'static str,
    /// The run's id.
    pub id: String,
    /// Name, when the user gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The user's labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The load generator, when it is known.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clients: Vec<Client>,
    /// Go's syntax: `10s`.
    pub duration: String,
}

/// A load generator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Client {
    /// Base name of its program.
    pub load_generator: String,
}

/// One distribution and its scope.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PerformanceTestResult {
    /// Release of the specification.
    pub smp_version: &'static str,
    /// Of run, node and scope.
    pub id: String,
    /// What the numbers are about, and what SMP has no field for.
    pub labels: BTreeMap<String, String>,
    /// First instant in the window, UTC.
    #[serde(serialize_with = "time")]
    pub start_time: Timestamp,
    /// First instant after the window, UTC.
    #[serde(serialize_with = "time")]
    pub end_time: Timestamp,
    /// ms.
    pub latencies_ms: Latency,
    /// Crossings per second, on the request hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actual_qps: Option<f64>,
    /// [`PerformanceTestConfig::id`].
    pub test_id: String,
    /// [`ServiceMeshConfig::id`].
    pub mesh_config_id: String,
    /// [`EnvironmentConfig::id`].
    pub env_id: String,
}

/// ms.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// Smallest.
    pub min: f64,
    /// Arithmetic mean.
    pub average: f64,
    /// Median.
    pub p50: f64,
    /// 90th percentile.
    pub p90: f64,
    /// 99th percentile.
    pub p99: f64,
    /// Largest.
    pub max: f64,
}

/// The mesh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ServiceMeshConfig {
    /// Release of the specification.
    pub smp_version: &'static str,
    /// Of run and node.
    pub id: String,
    /// The node and its proxies.
    pub labels: BTreeMap<String, String>,
    /// Whether both ends of connections between proxies show certificates; absent where only some do, or it was not seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtls_enabled: Option<bool>,
    /// Workers of each proxy; absent where they differ or do not show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_concurrency: Option<i32>,
    /// Build id of the proxies' program, if all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_build: Option<String>,
    /// The mesh, if all proxies that show one show the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_type: Option<MeshType>,
    /// The proxies at the edge that take requests in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress_gateway: Option<Proxies>,
    /// The proxies that are not at the edge.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sidecar: Option<Proxies>,
    /// The pods of its control plane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh_control_plane: Option<Together>,
    /// The application, if all proxies that name one serve the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_metadata: Option<ApplicationMetadata>,
    /// The run's id.
    pub exp_uuid: String,
}

/// A mesh by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MeshType {
    /// As `ServiceMesh.Type` has it.
    #[serde(rename = "type")]
    pub name: Mesh,
}

/// Proxies or pods on the node together: what `Sidecar`, `IngressGateway`, `MeshControlPlane` and `IndividualWorkload` have in
/// common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Together {
    /// How many.
    pub count: i32,
    /// CPU time of all of them, thousandths of a CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_mcores: Option<i32>,
    /// Of proxies their resident memory, of pods their working sets, MB of 10^6 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mb: Option<i32>,
}

/// Proxies of one part together; `Sidecar` and `IngressGateway` have the same fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Proxies {
    /// How many, and what they take.
    #[serde(flatten)]
    pub together: Together,
    /// Requests a second.
    pub rps: i32,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bps: Option<i32>,
}

/// What the proxies serve, by `app.kubernetes.io/*`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApplicationMetadata {
    /// `name`.
    pub application_name: String,
    /// `version`, if all have the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub application_version: Option<String>,
}

/// Where it ran.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvironmentConfig {
    /// Release of the specification.
    pub smp_version: &'static str,
    /// Of run and node.
    pub id: String,
    /// The node's name and system.
    pub labels: BTreeMap<String, String>,
    /// Version of the API server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kubernetes_version: Option<String>,
    /// The node.
    pub nodes: Vec<EnvironmentNode>,
    /// What runs on it, by owner.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub individual_workloads: Vec<IndividualWorkload>,
}

/// Pods of one owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IndividualWorkload {
    /// `namespace/name` of the owner.
    pub name: String,
    /// Those of its pods that run on the node.
    #[serde(flatten)]
    pub together: Together,
}

/// A node's size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvironmentNode {
    /// What its provider calls its kind.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// CPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cores: Option<i32>,
    /// Memory, MB of 10^6 bytes.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "int64")]
    pub mem_mb: Option<u64>,
}

/// Canonical proto-JSON has 0, 3, 6 or 9 digits after the second.
fn time<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    let ns = time.subsec_nanosecond().unsigned_abs();
    let digits = [(1_000_000_000, 0), (1_000_000, 3), (1_000, 6)]
        .into_iter()
        .find(|&(unit, _)| ns.is_multiple_of(unit))
        .map_or(9, |(_, digits)| digits);
    serializer.collect_str(&format_args!("{time:.digits$}"))
}

/// Proto-JSON writes 64-bit integers as strings.
#[expect(clippy::ref_option, reason = "serde's signature")]
fn int64<S: Serializer>(value: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_no_digit_too_many() {
        let written = |text: &str| {
            time(&text.parse().unwrap(), serde_json::value::Serializer).unwrap().as_str().unwrap().to_owned()
        };
        for (given, want) in [
            ("2026-11-23T10:00:00Z", "2026-11-23T10:00:00Z"),
            ("2026-11-23T10:00:00.5Z", "2026-11-23T10:00:00.500Z"),
            ("2026-11-23T10:00:00.123456Z", "2026-11-23T10:00:00.123456Z"),
            ("2026-11-23T11:00:00.000000001+01:00", "2026-11-23T10:00:00.000000001Z"),
        ] {
            assert_eq!(written(given), want);
        }
    }
}
