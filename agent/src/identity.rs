//! What a proxy is: its kind, the mesh it serves, and its part in it. By what shows of a process, without asking it anything.

mod pod;

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};

use object::read::ReadCache;
use object::{Object as _, read};
use procfs::process::Process;
use serde::Serialize;

pub use pod::{TELLING_LABELS, control_plane};

/// What is known of a proxy. What does not show is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The program, whatever its file is called.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// The mesh it serves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mesh: Option<Mesh>,
    /// Its part in the mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Threads or processes that carry messages, as they run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u32>,
    /// What its linker has named this build (`.note.gnu.build-id`), in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
}

/// A proxy's program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Envoy, whoever built it.
    Envoy,
    /// HAProxy.
    Haproxy,
    /// Linkerd's.
    LinkerdProxy,
    /// NGINX.
    Nginx,
    /// Traefik.
    Traefik,
    /// Istio's proxy of a node.
    Ztunnel,
}

/// A mesh, by its name in SMP's `ServiceMesh.Type`. Not reached: `OCTARINE` (no chart and no image of it is public any more), `TANZU`
/// (it installs Istio's own proxies, nothing of theirs is named otherwise). `OPEN_SERVICE_MESH`, `NGINX_SERVICE_MESH` and
/// `NETWORK_SERVICE_MESH` are reached with the API server's help only: by their processes alone they are any Envoy, NGINX and program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Mesh {
    /// AWS App Mesh.
    AppMesh,
    /// Cilium.
    CiliumServiceMesh,
    /// Consul.
    Consul,
    /// Istio, sidecars or ambient.
    Istio,
    /// Kuma.
    Kuma,
    /// Linkerd.
    Linkerd,
    /// Network Service Mesh: its own programs, which carry packets of all kinds; measured only where the user names them.
    NetworkServiceMesh,
    /// NGINX Service Mesh.
    NginxServiceMesh,
    /// Open Service Mesh.
    OpenServiceMesh,
    /// Traefik Mesh.
    TraefikMesh,
}

/// A proxy's part in its mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Beside one application.
    Sidecar,
    /// For all of a node.
    NodeProxy,
    /// For the services of a namespace.
    Waypoint,
    /// At the edge; for requests that come in, as far as it shows.
    Gateway,
    /// At the edge, for requests that go out.
    EgressGateway,
}

impl Mesh {
    /// As results write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AppMesh => "APP_MESH",
            Self::CiliumServiceMesh => "CILIUM_SERVICE_MESH",
            Self::Consul => "CONSUL",
            Self::Istio => "ISTIO",
            Self::Kuma => "KUMA",
            Self::Linkerd => "LINKERD",
            Self::NetworkServiceMesh => "NETWORK_SERVICE_MESH",
            Self::NginxServiceMesh => "NGINX_SERVICE_MESH",
            Self::OpenServiceMesh => "OPEN_SERVICE_MESH",
            Self::TraefikMesh => "TRAEFIK_MESH",
        }
    }
}

impl Role {
    /// As results write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Sidecar => "sidecar",
            Self::NodeProxy => "node_proxy",
            Self::Waypoint => "waypoint",
            Self::Gateway => "gateway",
            Self::EgressGateway => "egress_gateway",
        }
    }
}

/// What shows of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Base name of its executable.
    pub name: String,
    /// Its command line.
    pub arguments: Vec<String>,
    /// Base names of the executables of the processes that started it, the nearest first.
    pub ancestors: Vec<String>,
    /// Names of the variables in its environment; empty where these may not be read.
    pub variables: Vec<String>,
    /// Which of App Mesh's resources it stands for: `mesh/shop/virtualNode/cart`, or an ARN that ends in that.
    pub app_mesh_resource: Option<String>,
    /// Names of its threads.
    pub threads: Vec<String>,
    /// Its other processes.
    pub other_processes: u32,
    /// Build id of its executable.
    pub build_id: Option<String>,
}

/// The variables that tell App Mesh's Envoy which resource it stands for, the older one up to version 1.15 and still by its
/// controller (docs.aws.amazon.com/app-mesh/latest/userguide/envoy-config.html; aws-app-mesh-controller-for-k8s
/// `pkg/inject/sidecar_builder.go`).
const APP_MESH_RESOURCE: [&str; 2] = ["APPMESH_RESOURCE_ARN", "APPMESH_VIRTUAL_NODE_NAME"];
/// How many processes up an ancestor is looked for: a shell and a supervisor may stand between.
const GENERATIONS: usize = 4;

impl Facts {
    /// Looks at a process that is the first of so many.
    pub fn of(pid: u32, name: &str, processes: u32) -> Self {
        let Some(process) = process(pid) else { return Self { name: name.to_owned(), ..Self::default() } };
        let mut ancestors = Vec::new();
        let mut parent = process.stat().map_or(0, |stat| stat.ppid);
        while ancestors.len() < GENERATIONS
            && parent > 1
            && let Ok(process) = Process::new(parent)
        {
            let exe = process.exe().unwrap_or_default();
            ancestors.push(exe.file_name().unwrap_or_default().to_string_lossy().into_owned());
            parent = process.stat().map_or(0, |stat| stat.ppid);
        }
        let threads = process.tasks().into_iter().flatten().filter_map(|task| {
            let task = task.ok()?;
            Some(fs::read_to_string(format!("/proc/{pid}/task/{}/comm", task.tid)).ok()?.trim().to_owned())
        });
        let variables = process.environ().unwrap_or_default();
        let app_mesh_resource = APP_MESH_RESOURCE.iter().find_map(|&name| variables.get(OsStr::new(name)));
        Self {
            name: name.to_owned(),
            arguments: process.cmdline().unwrap_or_default(),
            ancestors,
            app_mesh_resource: app_mesh_resource.map(|value| value.to_string_lossy().into_owned()),
            variables: variables.into_keys().map(|name| name.to_string_lossy().into_owned()).collect(),
            threads: threads.collect(),
            other_processes: processes.saturating_sub(1),
            build_id: build_id(pid),
        }
    }

    fn started_by(&self, name: &str) -> bool {
        self.ancestors.iter().any(|ancestor| ancestor == name)
    }

    fn has_variable(&self, start: &str) -> bool {
        self.variables.iter().any(|name| name.starts_with(start))
    }

    /// What stands behind an argument of this name.
    fn argument(&self, name: &str) -> Option<&str> {
        let mut arguments = self.arguments.iter();
        while let Some(argument) = arguments.next() {
            if argument == name {
                return arguments.next().map(String::as_str);
            }
            if let Some(value) = argument.strip_prefix(name).and_then(|rest| rest.strip_prefix('=')) {
                return Some(value);
            }
        }
        None
    }

    fn mentions(&self, text: &str) -> bool {
        self.arguments.iter().any(|argument| argument.contains(text))
    }

    fn threads_named(&self, start: &str) -> Option<u32> {
        let count = self.threads.iter().filter(|name| name.starts_with(start)).count() as u32;
        (count > 0).then_some(count)
    }
}

impl Identity {
    /// What these facts say.
    pub fn of(facts: &Facts) -> Self {
        let kind = match facts.name.as_str() {
            "envoy" | "cilium-envoy" => Some(Kind::Envoy),
            "haproxy" => Some(Kind::Haproxy),
            "linkerd2-proxy" => Some(Kind::LinkerdProxy),
            "nginx" => Some(Kind::Nginx),
            "traefik" | "traefik-mesh" => Some(Kind::Traefik),
            "ztunnel" => Some(Kind::Ztunnel),
            _ => None,
        };
        let (mesh, role) = mesh(facts, kind);
        Self { kind, mesh, role, workers: workers(facts, kind), build_id: facts.build_id.clone() }
    }
}

fn mesh(facts: &Facts, kind: Option<Kind>) -> (Option<Mesh>, Option<Role>) {
    // Istio's agent starts Envoy and names what it is: `sidecar~10.1.2.3~pod.namespace~...`.
    let node = facts.argument("--service-node").unwrap_or_default();
    let istio_role = || match node.split('~').next() {
        Some("sidecar") => Some(Role::Sidecar),
        Some("router") => Some(Role::Gateway),
        Some("waypoint") => Some(Role::Waypoint),
        _ => None,
    };
    match kind {
        Some(Kind::Ztunnel) => (Some(Mesh::Istio), Some(Role::NodeProxy)),
        Some(Kind::LinkerdProxy) => (Some(Mesh::Linkerd), Some(Role::Sidecar)),
        Some(Kind::Envoy) if facts.name == "cilium-envoy" => {
            (Some(Mesh::CiliumServiceMesh), Some(Role::NodeProxy))
        }
        Some(Kind::Envoy) if facts.started_by("pilot-agent") || facts.has_variable("ISTIO_META_") => {
            (Some(Mesh::Istio), istio_role())
        }
        Some(Kind::Envoy) if facts.started_by("consul-dataplane") || facts.started_by("consul") => {
            (Some(Mesh::Consul), None)
        }
        Some(Kind::Envoy) if facts.started_by("kuma-dp") => (Some(Mesh::Kuma), None),
        Some(Kind::Envoy) if facts.has_variable("APPMESH_") => {
            let resource = facts.app_mesh_resource.as_deref().unwrap_or_default();
            let roles = [("/virtualNode/", Role::Sidecar), ("/virtualGateway/", Role::Gateway)];
            let role = roles.into_iter().find(|(kind, _)| resource.contains(kind));
            (Some(Mesh::AppMesh), role.map(|(_, role)| role))
        }
        Some(Kind::Traefik) if facts.name == "traefik-mesh" || facts.mentions("traefik-mesh") => {
            (Some(Mesh::TraefikMesh), Some(Role::NodeProxy))
        }
        _ => (None, None),
    }
}

fn workers(facts: &Facts, kind: Option<Kind>) -> Option<u32> {
    match kind? {
        Kind::Envoy => facts.threads_named("wrk:worker_"),
        // The master carries nothing.
        Kind::Nginx => Some(facts.other_processes.max(1)),
        Kind::Haproxy | Kind::LinkerdProxy | Kind::Traefik | Kind::Ztunnel => None,
    }
}

/// Of the executable of a process, wherever that is by now. Reads no more of it than its headers and notes.
fn build_id(pid: u32) -> Option<String> {
    let file = ReadCache::new(File::open(format!("/proc/{pid}/exe")).ok()?);
    let object = read::File::parse(&file).ok()?;
    let id = object.build_id().ok()??;
    Some(id.iter().fold(String::new(), |mut text, byte| {
        // A string takes all that is written to it.
        let _written = write!(text, "{byte:02x}");
        text
    }))
}

fn process(pid: u32) -> Option<Process> {
    Process::new(i32::try_from(pid).ok()?).ok()
}

#[cfg(test)]
mod tests;
