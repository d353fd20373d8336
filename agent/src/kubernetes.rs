//! Pods by their names: what the API server knows of this node's pods, else what a proxy's own environment says.
//!
//! One task lists and watches `spec.nodeName=<this node>` and keeps an [`Index`]. Nothing waits for it: names are there when they
//! have come, and a measurement without them is as one without a cluster.

mod environment;
mod index;
mod watch;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1 as api;
use kube::Config;
use kube::config::KubeConfigOptions;
use serde::Serialize;
use thiserror::Error;
use tokio::sync;
use tokio::task::JoinHandle;
use tracing::warn;

pub use environment::of_process;

use crate::cgroup::Container;
use crate::cgroup::pods::{GroupCost, PodsUse};
use crate::identity::Mesh;
use crate::window::Window;
use index::Index;

/// A pod as results name it. What is unknown is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid in the API; that of a static pod's mirror is not the one in control groups.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The node it is bound to, by its name in the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// What it was made by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<Owner>,
    /// Name of the container in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The container's image, as the pod asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Its labels `app.kubernetes.io/*`, without that.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub application: BTreeMap<String, String>,
    /// Who says so.
    pub source: Source,
    /// Those of its labels that tell what a proxy in it is.
    #[serde(skip)]
    pub labels: BTreeMap<&'static str, String>,
}

/// What made a pod: the reference that is marked as its controller, and of a `Deployment`'s `ReplicaSet` the `Deployment`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Owner {
    /// `Deployment`, `DaemonSet`, `StatefulSet`, `Job`, ...; `Node` of a static pod.
    pub kind: String,
    /// Its name, in the pod's namespace.
    pub name: String,
}

/// Where a pod's name is from. The later one is the better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// From variables that a mesh's injector has given to the proxy.
    #[default]
    Environment,
    /// From the API server.
    Api,
}

/// Pods of one owner on this node.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Workload {
    /// Where it is.
    pub namespace: String,
    /// The owner; of a pod without one, and of a static one, the pod itself.
    #[serde(flatten)]
    pub owner: Owner,
    /// How many of its pods run on this node.
    pub pods: u32,
    /// Those of them that are not in the following: their control groups were not found at both ends of the window.
    #[serde(skip_serializing_if = "is_zero")]
    pub unmeasured_pods: u32,
    /// What their control groups used together; empty where none was found.
    #[serde(flatten)]
    pub cost: GroupCost,
    /// The mesh whose control plane these are part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub control_plane_of: Option<Mesh>,
}

/// What the API server says of the cluster and this node. What has not come is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cluster {
    /// This node's name in the cluster.
    pub node: String,
    /// Version of the API server: `v1.31.2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// The node's label `node.kubernetes.io/instance-type`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance_type: Option<String>,
    /// What runs on this node, proxied or not, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workloads: Vec<Workload>,
    /// Why names may be missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
}

/// Whether names are asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Mode {
    /// In a pod, with its service account; nowhere else.
    #[default]
    Auto,
    /// In a pod with its service account, elsewhere as kubectl does: by `KUBECONFIG` or `~/.kube/config`.
    On,
    /// Never.
    Off,
}

/// Why nothing can be asked.
#[derive(Debug, Error)]
pub enum KubernetesError {
    /// No service account.
    #[error(
        "--kubernetes: this pod's service account: {0}; set automountServiceAccountToken: true, or give --kubernetes off"
    )]
    ServiceAccount(#[source] kube::config::InClusterError),
    /// No configuration.
    #[error("--kubernetes on: kubectl's configuration: {0}; set KUBECONFIG, or give --kubernetes off")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    /// No client can be made of it.
    #[error("--kubernetes: {0}; check the server's address and certificates in the configuration")]
    Client(#[source] kube::Error),
}

/// What has been learned so far.
#[derive(Debug, Default)]
struct Known {
    index: Index,
    version: Option<String>,
    instance_type: Option<String>,
    trouble: Option<String>,
}

/// The names as they come. Dropping it ends the asking.
#[derive(Debug)]
pub struct Names {
    node: String,
    known: sync::watch::Receiver<Known>,
    task: JoinHandle<()>,
}

impl Names {
    /// Begins to ask, if `mode` wants it and there is whom to ask. Waits for no answer. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// Of [`Mode::On`], when nothing can be asked; [`Mode::Auto`] says so and goes on without names.
    pub async fn start(mode: Mode, node: &str) -> Result<Option<Self>, KubernetesError> {
        let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
        let config = match mode {
            Mode::Off => return Ok(None),
            Mode::Auto if !in_pod => return Ok(None),
            Mode::Auto | Mode::On if in_pod => Config::incluster().map_err(KubernetesError::ServiceAccount),
            Mode::Auto | Mode::On => kubeconfig().await.map_err(KubernetesError::Kubeconfig),
        };
        match (config.and_then(|config| Self::ask(config, node)), mode) {
            (Ok(names), _) => Ok(Some(names)),
            (Err(error), Mode::On) => Err(error),
            (Err(error), _) => {
                warn!("pods are not named: {error}");
                Ok(None)
            }
        }
    }

    /// Begins to ask the server of a configuration.
    pub(crate) fn ask(config: Config, node: &str) -> Result<Self, KubernetesError> {
        let (sender, known) = sync::watch::channel(Known::default());
        let question = watch::Question::new(config, node).map_err(KubernetesError::Client)?;
        Ok(Self { node: node.to_owned(), known, task: tokio::spawn(question.ask(sender)) })
    }

    /// The pod of a container, if it is known by now.
    pub fn pod(&self, container: &Container) -> Option<Pod> {
        self.known.borrow().index.pod(container)
    }

    /// What is known of the cluster by now, and what its pods on this node used in a window.
    pub fn cluster(&self, window: Option<&Window>) -> Cluster {
        let known = self.known.borrow();
        let used = window.and_then(|window| window.pods.as_ref());
        let mut workloads = known.index.workloads(used.unwrap_or(&PodsUse::default()));
        for workload in &mut workloads {
            workload.cost.cpu_cores = workload.cost.cpu_ns.and_then(|ns| window?.cores(ns));
        }
        Cluster {
            node: self.node.clone(),
            version: known.version.clone(),
            instance_type: known.instance_type.clone(),
            workloads,
            trouble: known.trouble.clone(),
        }
    }
}

impl Workload {
    /// Whether its sums are those of all its pods.
    pub const fn is_whole(&self) -> bool {
        self.unmeasured_pods == 0
    }
}

impl Drop for Names {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pod {
    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }

    /// Whether nothing is to be learned any more: a container's name does not change.
    pub fn is_complete(&self) -> bool {
        self.source == Source::Api && self.container.is_some()
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
const fn is_zero(count: &u32) -> bool {
    *count == 0
}

/// As kubectl finds it. The default path is not taken when `KUBECONFIG` is set.
async fn kubeconfig() -> Result<Config, kube::config::KubeconfigError> {
    Config::from_kubeconfig(&KubeConfigOptions::default()).await
}

#[cfg(test)]
mod tests;
