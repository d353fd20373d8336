//! Service Mesh Performance results: strict proto-JSON of the messages in `proto/`, each in an envelope of ours.
//!
//! Names are snake case, times RFC 3339 UTC, 64-bit integers strings, latencies ms, memory MB (10^6 bytes).
//! What is unknown is absent, never zero. A proxy's latency is never a client's: every result here carries its
//! scope in labels under [`LABEL_PREFIX`].

pub mod message;
mod scope;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde::Serialize;
use uuid::Uuid;

use crate::counters::Counters;
use crate::document::{Document, ProxyMatching};
use crate::hop::{Direction, Segment};
use crate::identity::{Mesh, Role};
use crate::kubernetes::{Pod, Workload};
use crate::window::{Bytes, Opened};
use message::{
    ApplicationMetadata, Client, EnvironmentConfig, EnvironmentNode, IndividualWorkload, Latency, MeshType,
    PerformanceTestConfig, PerformanceTestResult, Proxies, ServiceMeshConfig, Together,
};

/// Release of the specification whose fields these are.
pub const SMP_VERSION: &str = "v0.6.1";
/// Before every label of ours.
pub const LABEL_PREFIX: &str = "io.smp-agent/";

/// Namespace of all ids made here: the version 5 id of the name `io.smp-agent` in the DNS namespace.
const NAMESPACE: Uuid = Uuid::from_u128(0x5f9b_c773_ab0e_5c46_99cf_bf8b_d316_87c6);
const NS_PER_MS: f64 = 1e6;
const BYTES_PER_MB: u64 = 1_000_000;

/// What is known of the test besides what was measured. All of it optional.
#[derive(Clone, Debug, Default)]
pub struct Test {
    /// Its name.
    pub name: Option<String>,
    /// Labels given by the user, on the configuration.
    pub labels: BTreeMap<String, String>,
    /// How long the load was meant to last; the window's length when `None`.
    pub duration: Option<Duration>,
    /// The load generator that ran; only its base name is written, as its arguments may hold secrets.
    pub load_generator: Option<String>,
}

/// `result.yaml` and `result.json`: the envelope around SMP's messages. Each value parses on its own.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SmpResult {
    /// The document's warnings, so that no rendering lacks them; absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
    /// The test.
    pub config: PerformanceTestConfig,
    /// The mesh.
    pub mesh: ServiceMeshConfig,
    /// The node.
    pub environment: EnvironmentConfig,
    /// One per proxy, direction and segment that has samples.
    pub results: Vec<PerformanceTestResult>,
}

impl SmpResult {
    /// The SMP view of a document. Ids depend on the run, the node and the scope alone, so writing twice gives
    /// the same.
    pub fn new(document: &Document, test: &Test) -> Self {
        let ids = Ids { run_id: &document.run_id, node: &document.node.identity.name };
        let mesh = mesh(document, &ids);
        let environment = environment(document, &ids);
        let results = scope::all(document)
            .map(|scope| PerformanceTestResult {
                smp_version: SMP_VERSION,
                id: ids.of(&scope.name()),
                labels: scope.labels(document),
                start_time: document.window.start,
                end_time: document.window.end,
                latencies_ms: Latency {
                    min: scope.hop.min as f64 / NS_PER_MS,
                    average: scope.hop.mean / NS_PER_MS,
                    p50: scope.hop.p50 as f64 / NS_PER_MS,
                    p90: scope.hop.p90 as f64 / NS_PER_MS,
                    p99: scope.hop.p99 as f64 / NS_PER_MS,
                    max: scope.hop.max as f64 / NS_PER_MS,
                },
                actual_qps: crossings_per_second(document, &scope),
                test_id: document.run_id.clone(),
                mesh_config_id: mesh.id.clone(),
                env_id: environment.id.clone(),
            })
            .collect();
        Self {
            warnings: document.warnings.clone(),
            config: config(document, test),
            mesh,
            environment,
            results,
        }
    }
}

/// Makes ids that are the same whenever run, node and scope are.
struct Ids<'a> {
    run_id: &'a str,
    node: &'a str,
}

impl Ids<'_> {
    fn of(&self, scope: &str) -> String {
        let run = Uuid::new_v5(&NAMESPACE, self.run_id.as_bytes());
        let node = Uuid::new_v5(&run, self.node.as_bytes());
        Uuid::new_v5(&node, scope.as_bytes()).to_string()
    }
}

fn config(document: &Document, test: &Test) -> PerformanceTestConfig {
    let duration = test.duration.unwrap_or_else(|| Duration::from_secs_f64(document.window.seconds.max(0.0)));
    let load_generator = test.load_generator.as_deref().and_then(|path| Path::new(path).file_name());
    PerformanceTestConfig {
        smp_version: SMP_VERSION,
        id: document.run_id.clone(),
        name: test.name.clone(),
        labels: test.labels.clone(),
        clients: load_generator
            .map(|name| Client { load_generator: name.to_string_lossy().into_owned() })
            .into_iter()
            .collect(),
        duration: go_duration(duration),
    }
}

fn mesh(document: &Document, ids: &Ids<'_>) -> ServiceMeshConfig {
    let proxies: Vec<_> =
        document.proxies.iter().map(|proxy| format!("{}:{}", proxy.proxy, proxy.pid)).collect();
    let mut labels = vec![("node", document.node.identity.name.clone())];
    let of_role = |of: fn(Option<Role>) -> bool| together(document, |proxy| of(proxy.identity.role));
    let ingress_gateway = of_role(|role| role == Some(Role::Gateway));
    let sidecar = of_role(|role| !matches!(role, Some(Role::Gateway | Role::EgressGateway)));
    if !proxies.is_empty() {
        labels.push(("proxies", proxies.join(",")));
    }
    for (name, proxies) in [("ingress-gateway-scope", ingress_gateway), ("sidecar-scope", sidecar)] {
        let of = if name == "sidecar-scope" { "proxies but gateways" } else { "gateways but egress ones" };
        let scope = format!("total of this node's {of}; bps is bytes per second, mem is resident");
        labels.extend(proxies.map(|_| (name, scope)));
    }
    let control_plane = control_plane(document);
    labels.extend(control_plane.map(|(mesh, _)| {
        let scope =
            format!("total of this node's pods of {}'s control plane; mem is the working set", mesh.as_str());
        ("control-plane-scope", scope)
    }));
    let opened = opened(document);
    let all = opened.plain + opened.tls + opened.mutual_tls;
    if all > 0 {
        labels.push(("opened-connections", all.to_string()));
        labels.push(("opened-connections-tls", (opened.tls + opened.mutual_tls).to_string()));
        labels.push(("opened-connections-mutual-tls", opened.mutual_tls.to_string()));
    }
    ServiceMeshConfig {
        smp_version: SMP_VERSION,
        id: ids.of("mesh"),
        labels: prefixed(labels),
        mtls_enabled: mtls_enabled(opened),
        proxy_concurrency: all_alike(document.proxies.iter().map(|proxy| proxy.identity.workers))
            .and_then(|workers| i32::try_from(workers).ok()),
        proxy_build: all_alike(document.proxies.iter().map(|proxy| proxy.identity.build_id.as_deref()))
            .map(str::to_owned),
        mesh_type: all_alike(document.proxies.iter().filter_map(|proxy| proxy.identity.mesh).map(Some))
            .map(|name| MeshType { name }),
        ingress_gateway,
        sidecar,
        mesh_control_plane: control_plane.map(|(_, pods)| pods),
        application_metadata: application(document),
        exp_uuid: document.run_id.clone(),
    }
}

/// What the proxies have opened to other hosts in the window.
fn opened(document: &Document) -> Opened {
    let of_each = document.proxies.iter().map(|proxy| proxy.requests.opened_connections);
    of_each.fold(Opened::default(), Counters::plus)
}

/// Whether both ends of the mesh's connections show certificates: of those that proxies have opened to other hosts all do, or some
/// are in plain and none does. `None` where it differs, where none was seen to open, and where only servers did: a proxy that goes
/// on with a session from before the agent shows none.
const fn mtls_enabled(opened: Opened) -> Option<bool> {
    match opened {
        Opened { plain: 0, tls: 0, mutual_tls: 1.. } => Some(true),
        Opened { plain: 1.., mutual_tls: 0, .. } => Some(false),
        Opened { .. } => None,
    }
}

/// What all of them have; `None` if they differ, or one has none.
fn all_alike<T: Copy + PartialEq>(mut values: impl Iterator<Item = Option<T>>) -> Option<T> {
    let first = values.next()??;
    values.all(|value| value == Some(first)).then_some(first)
}

/// What the proxies serve, if those that say so agree.
fn application(document: &Document) -> Option<ApplicationMetadata> {
    let labels = || {
        let of_pods = document.proxies.iter().filter_map(|proxy| Some(&proxy.pod.as_ref()?.application));
        of_pods.filter(|labels| labels.contains_key("name"))
    };
    let name = all_alike(labels().map(|labels| labels.get("name")))?;
    let version = all_alike(labels().map(|labels| labels.get("version")));
    Some(ApplicationMetadata { application_name: name.clone(), application_version: version.cloned() })
}

/// Some proxies of the node together, rounded as a whole and never beyond what the fields hold. Absent without any.
fn together(document: &Document, of: impl Fn(&ProxyMatching) -> bool) -> Option<Proxies> {
    let proxies: Vec<_> = document.proxies.iter().filter(|proxy| of(proxy)).collect();
    let seconds = document.window.seconds;
    let sum = |value: &dyn Fn(&ProxyMatching) -> f64| proxies.iter().map(|proxy| value(proxy)).sum::<f64>();
    let cores = proxies.iter().map(|proxy| Some(proxy.cpu.as_ref()?.cores)).sum::<Option<f64>>();
    let bytes = sum(&|proxy| {
        let Bytes { downstream_out, upstream_out, .. } = proxy.requests.bytes;
        (downstream_out + upstream_out) as f64
    });
    (!proxies.is_empty()).then(|| Proxies {
        together: Together::of(
            proxies.len() as f64,
            cores,
            Some(sum(&|proxy| proxy.memory.rss_bytes as f64)),
        ),
        rps: saturated(sum(&|proxy| proxy.requests.requests_per_second)),
        bps: (seconds > 0.0).then(|| saturated(bytes / seconds)),
    })
}

/// The control plane of the mesh that the proxies serve, as far as it is on this node. Where no proxy shows a mesh it is the only
/// one that is here; Cilium's operator alone is none, since it is there without the mesh too. `None` where there are several.
fn control_plane(document: &Document) -> Option<(Mesh, Together)> {
    let meshes: Vec<_> = document.proxies.iter().filter_map(|proxy| proxy.identity.mesh).collect();
    let is_of =
        |mesh| if meshes.is_empty() { mesh != Mesh::CiliumServiceMesh } else { meshes.contains(&mesh) };
    let workloads = || document.kubernetes.iter().flat_map(|cluster| &cluster.workloads);
    let of_some = || workloads().filter_map(|workload| workload.control_plane_of).filter(|&mesh| is_of(mesh));
    let mesh = all_alike(of_some().map(Some))?;
    let its: Vec<_> = workloads().filter(|workload| workload.control_plane_of == Some(mesh)).collect();
    Some((mesh, Together::of_pods(&its)))
}

impl Together {
    /// Rounded as a whole.
    fn of(count: f64, cores: Option<f64>, bytes: Option<f64>) -> Self {
        Self {
            count: saturated(count),
            cpu_mcores: cores.map(|cores| saturated(cores * 1e3)),
            mem_mb: bytes.map(|bytes| saturated(bytes / BYTES_PER_MB as f64)),
        }
    }

    /// Of the pods of these workloads; what is not known of all of them is absent.
    fn of_pods(workloads: &[&Workload]) -> Self {
        let sum = |value: fn(&Workload) -> Option<f64>| -> Option<f64> {
            workloads.iter().map(|workload| value(workload).filter(|_| workload.is_whole())).sum()
        };
        Self::of(
            workloads.iter().map(|workload| f64::from(workload.pods)).sum(),
            sum(|workload| workload.cost.cpu_cores),
            sum(|workload| workload.cost.working_set_bytes.map(|bytes| bytes as f64)),
        )
    }
}

/// The nearest number that a field holds.
fn saturated(value: f64) -> i32 {
    // `as` takes the nearest, and 0 for what is no number.
    value.round() as i32
}

fn environment(document: &Document, ids: &Ids<'_>) -> EnvironmentConfig {
    let node = &document.node.identity;
    let mut labels =
        vec![("node", node.name.clone()), ("kernel", node.kernel.clone()), ("arch", node.arch.clone())];
    labels.extend(node.os.clone().map(|os| ("os", os)));
    let cluster = document.kubernetes.as_ref();
    labels.extend(cluster.map(|cluster| ("kubernetes-node", cluster.node.clone())));
    let workloads = cluster.into_iter().flat_map(|cluster| &cluster.workloads);
    if workloads.clone().any(|workload| workload.cost.cpu_ns.is_some()) {
        let scope =
            "cpu and mem of the pods' control groups, proxies in them included; mem is the working set";
        labels.push(("individual-workloads-scope", scope.to_owned()));
    }
    EnvironmentConfig {
        smp_version: SMP_VERSION,
        id: ids.of("environment"),
        labels: prefixed(labels),
        kubernetes_version: cluster.and_then(|cluster| cluster.version.clone()),
        nodes: vec![EnvironmentNode {
            kind: cluster.and_then(|cluster| cluster.instance_type.clone()),
            cores: node.cpus.and_then(|cpus| i32::try_from(cpus).ok()),
            mem_mb: node.mem_bytes.map(|bytes| bytes / BYTES_PER_MB),
        }],
        individual_workloads: workloads
            .map(|workload| IndividualWorkload {
                name: format!("{}/{}", workload.namespace, workload.owner.name),
                together: Together::of_pods(&[workload]),
            })
            .collect(),
    }
}

/// Of the request hop only: one crossing there is one request, anything else would count it again.
fn crossings_per_second(document: &Document, scope: &scope::Scope<'_>) -> Option<f64> {
    let requests = scope.hop.direction == Direction::Request && scope.hop.segment == Segment::Hop;
    (requests && document.window.seconds > 0.0).then(|| scope.hop.count as f64 / document.window.seconds)
}

/// A pod in labels.
fn pod_labels(pod: &Pod) -> Vec<(&'static str, String)> {
    let mut labels = vec![("pod", pod.name.clone()), ("namespace", pod.namespace.clone())];
    labels.extend(pod.container.clone().map(|name| ("container", name)));
    labels.extend(pod.owner.as_ref().map(|owner| ("owner", format!("{}/{}", owner.kind, owner.name))));
    labels
}

fn prefixed(labels: Vec<(&str, String)>) -> BTreeMap<String, String> {
    labels.into_iter().map(|(name, value)| (format!("{LABEL_PREFIX}{name}"), value)).collect()
}

/// As Go reads durations, to the ms: `10s`, `1.5s`.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms.is_multiple_of(1_000) { format!("{}s", ms / 1_000) } else { format!("{}s", ms as f64 / 1e3) }
}

#[cfg(test)]
mod tests;
