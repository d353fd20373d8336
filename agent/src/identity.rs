//! What a proxy is: its kind, the mesh it serves, and its part in it. By what shows of a process, without asking it anything.

use std::fmt::Write as _;
use std::fs::{self, File};

use object::read::ReadCache;
use object::{Object as _, read};
use procfs::process::Process;
use serde::Serialize;

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

/// A mesh, by its name in SMP's `ServiceMesh.Type`. Not reached by what shows of a process: `OCTARINE`, `NETWORK_SERVICE_MESH`
/// (no proxy that forwards TCP), `TANZU` (its proxies are Istio's), `OPEN_SERVICE_MESH` and `NGINX_SERVICE_MESH` (theirs are
/// called as any other Envoy and NGINX).
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
    /// At the edge.
    Gateway,
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
    /// Names of its threads.
    pub threads: Vec<String>,
    /// Its other processes.
    pub other_processes: u32,
    /// Build id of its executable.
    pub build_id: Option<String>,
}

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
        Self {
            name: name.to_owned(),
            arguments: process.cmdline().unwrap_or_default(),
            ancestors,
            variables: process
                .environ()
                .map(|all| all.into_keys().map(|name| name.to_string_lossy().into_owned()).collect())
                .unwrap_or_default(),
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
        Some(Kind::Envoy) if facts.has_variable("APPMESH_") => (Some(Mesh::AppMesh), None),
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
mod tests {
    use std::process::Command;

    use super::*;

    fn facts(name: &str) -> Facts {
        Facts { name: name.to_owned(), ..Facts::default() }
    }

    fn arguments(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    fn found(facts: &Facts) -> (Option<Kind>, Option<Mesh>, Option<Role>) {
        let Identity { kind, mesh, role, .. } = Identity::of(facts);
        (kind, mesh, role)
    }

    #[test]
    fn every_proxy_by_what_shows_of_it() {
        let istio = |node: &str| Facts {
            arguments: arguments(&format!(
                "/usr/local/bin/envoy -c etc/istio/proxy/envoy-rev.json --service-node {node} --concurrency 2"
            )),
            ancestors: vec!["pilot-agent".into()],
            ..facts("envoy")
        };
        let (envoy, istio_mesh) = (Some(Kind::Envoy), Some(Mesh::Istio));
        let node = "~10.1.2.3~httpbin-1.default~default.svc.cluster.local";
        assert_eq!(found(&istio(&format!("sidecar{node}"))), (envoy, istio_mesh, Some(Role::Sidecar)));
        assert_eq!(found(&istio(&format!("router{node}"))), (envoy, istio_mesh, Some(Role::Gateway)));
        assert_eq!(found(&istio(&format!("waypoint{node}"))), (envoy, istio_mesh, Some(Role::Waypoint)));
        assert_eq!(found(&facts("ztunnel")), (Some(Kind::Ztunnel), istio_mesh, Some(Role::NodeProxy)));
        let linkerd = (Some(Kind::LinkerdProxy), Some(Mesh::Linkerd), Some(Role::Sidecar));
        assert_eq!(found(&facts("linkerd2-proxy")), linkerd);
        let cilium = (envoy, Some(Mesh::CiliumServiceMesh), Some(Role::NodeProxy));
        assert_eq!(found(&facts("cilium-envoy")), cilium);
        let started_by = |name: &str| Facts { ancestors: vec!["sh".into(), name.into()], ..facts("envoy") };
        assert_eq!(found(&started_by("consul-dataplane")), (envoy, Some(Mesh::Consul), None));
        assert_eq!(found(&started_by("kuma-dp")), (envoy, Some(Mesh::Kuma), None));
        let app_mesh = Facts { variables: vec!["APPMESH_RESOURCE_ARN".into()], ..facts("envoy") };
        assert_eq!(found(&app_mesh), (envoy, Some(Mesh::AppMesh), None));
        let traefik = (Some(Kind::Traefik), Some(Mesh::TraefikMesh), Some(Role::NodeProxy));
        assert_eq!(found(&facts("traefik-mesh")), traefik);
        for plain in ["envoy", "nginx", "haproxy", "traefik"] {
            let (kind, mesh, role) = found(&facts(plain));
            assert!(kind.is_some() && mesh.is_none() && role.is_none(), "{plain}");
        }
        assert_eq!(found(&facts("toy")), (None, None, None));
    }

    #[test]
    fn workers_are_counted_where_they_show() {
        let threads = ["envoy", "dispatcher", "wrk:worker_0", "wrk:worker_1"].map(str::to_owned).into();
        assert_eq!(Identity::of(&Facts { threads, ..facts("envoy") }).workers, Some(2));
        assert_eq!(Identity::of(&Facts { other_processes: 4, ..facts("nginx") }).workers, Some(4));
        assert_eq!(Identity::of(&facts("nginx")).workers, Some(1), "without a master");
        assert_eq!(Identity::of(&facts("haproxy")).workers, None);
    }

    #[test]
    fn an_argument_in_both_forms() {
        let facts = Facts { arguments: arguments("envoy --service-node=a --mode serve"), ..facts("envoy") };
        assert_eq!(facts.argument("--service-node"), Some("a"));
        assert_eq!(facts.argument("--mode"), Some("serve"));
        assert_eq!(facts.argument("--other"), None);
    }

    #[test]
    fn this_process_shows_something() {
        let facts = Facts::of(std::process::id(), "toy", 1);
        assert!(
            !facts.arguments.is_empty() && !facts.threads.is_empty() && !facts.ancestors.is_empty(),
            "{facts:?}"
        );
    }

    #[test]
    fn the_build_id_is_the_one_that_binutils_read() {
        let mut sleep = Command::new("sleep").arg("60").spawn().unwrap();
        let exe = format!("/proc/{}/exe", sleep.id());
        let notes = Command::new("readelf").args(["--notes", &exe]).output().unwrap();
        let found = build_id(sleep.id());
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        let notes = String::from_utf8(notes.stdout).unwrap();
        let (_, id) = notes.split_once("Build ID: ").unwrap();
        assert_eq!(found.as_deref(), id.lines().next());
    }
}
