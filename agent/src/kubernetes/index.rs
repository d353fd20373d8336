//! This node's pods by container id, by uid, and static ones by the hash of their configuration.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use kube::runtime::watcher::Event;
use tracing::warn;

use super::{Owner, Pod, Source, Workload, api};
use crate::cgroup::Container;
use crate::cgroup::pods::{GroupCost, PodUse, PodsUse};
use crate::identity::{Mesh, control_plane};

/// How many pods are kept: more than any kubelet runs (110 unless told, some clusters 500).
const MAX_PODS: usize = 4_096;

/// How many containers of a pod are kept, those before a restart among them.
const MAX_CONTAINERS: usize = 64;

/// The kubelet's hash of a static pod's configuration: in control groups it stands for the uid, which the pod's mirror does not have.
const CONFIG_HASH: &str = "kubernetes.io/config.hash";
/// What a `Deployment` puts behind its name to name a `ReplicaSet`.
const TEMPLATE_HASH: &str = "pod-template-hash";
const APPLICATION: &str = "app.kubernetes.io/";

/// Pods and no more of them than is asked for.
#[derive(Debug, Default)]
pub(super) struct Index {
    pods: Pods,
    /// What a list has brought so far; it takes the place of `pods` when it has ended.
    listing: Option<Pods>,
}

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<String, Arc<Entry>>,
    by_container: HashMap<String, Arc<Entry>>,
    by_hash: HashMap<String, Arc<Entry>>,
    /// Said once.
    full: bool,
}

#[derive(Debug)]
struct Entry {
    pod: Pod,
    containers: Vec<Named>,
    hash: Option<String>,
    runs: bool,
}

/// A container that has begun.
#[derive(Debug)]
struct Named {
    id: String,
    name: String,
    image: Option<String>,
}

impl Index {
    /// Takes what a list or a watch brings.
    pub(super) fn take(&mut self, event: Event<api::Pod>) {
        match event {
            Event::Init => self.listing = Some(Pods::default()),
            Event::InitApply(pod) => self.listing.get_or_insert_default().put(&pod),
            Event::InitDone => self.pods = self.listing.take().unwrap_or_default(),
            Event::Apply(pod) => self.pods.put(&pod),
            Event::Delete(pod) => drop(pod.metadata.uid.and_then(|uid| self.pods.remove(&uid))),
        }
    }

    /// The pod that a container is in: by the container's id, else, without the container's name, by the pod's uid or hash.
    pub(super) fn pod(&self, container: &Container) -> Option<Pod> {
        let Pods { by_uid, by_container, by_hash, .. } = &self.pods;
        if let Some(id) = &container.id
            && let Some(entry) = by_container.get(id)
        {
            let named = entry.containers.iter().find(|named| named.id == *id);
            let (name, image) =
                named.map_or((None, None), |named| (Some(named.name.clone()), named.image.clone()));
            return Some(Pod { container: name, image, ..entry.pod.clone() });
        }
        let uid = container.pod_uid.as_ref()?;
        by_uid.get(uid).or_else(|| by_hash.get(uid)).map(|entry| entry.pod.clone())
    }

    /// True if no pod is known.
    pub(super) fn is_empty(&self) -> bool {
        self.pods.by_uid.is_empty()
    }

    /// The owners of the pods that run, by name, and what the control groups of these have used.
    pub(super) fn workloads(&self, used: &PodsUse) -> Vec<Workload> {
        let mut workloads: BTreeMap<(String, Owner), Workload> = BTreeMap::new();
        for (uid, entry) in self.pods.by_uid.iter().filter(|(_, entry)| entry.runs) {
            let Entry { pod, hash, .. } = entry.as_ref();
            // Static pods are the node's, which is no workload.
            let made_by = pod.owner.clone().filter(|owner| owner.kind != "Node");
            let alone = || Owner { kind: "Pod".to_owned(), name: pod.name.clone() };
            let (namespace, owner) = (pod.namespace.clone(), made_by.unwrap_or_else(alone));
            let workload = workloads
                .entry((namespace.clone(), owner.clone()))
                .or_insert_with(|| Workload::of_no_pod(namespace, owner));
            let group = used.pods.get(hash.as_ref().unwrap_or(uid));
            workload.add(group.copied().unwrap_or_default(), control_plane(&pod.labels));
        }
        workloads.into_values().map(Workload::checked).collect()
    }
}

impl Workload {
    fn of_no_pod(namespace: String, owner: Owner) -> Self {
        Self {
            namespace,
            owner,
            pods: 0,
            unmeasured_pods: 0,
            cost: GroupCost::default(),
            control_plane_of: None,
        }
    }

    fn add(&mut self, used: PodUse, control_plane_of: Option<Mesh>) {
        self.pods += 1;
        self.control_plane_of = self.control_plane_of.or(control_plane_of);
        let Some(cpu_ns) = used.cpu_ns else {
            self.unmeasured_pods += 1;
            return;
        };
        // Memory is of the same pods, or unknown: there are kernels that do not count it.
        let cost = &mut self.cost;
        cost.working_set_bytes = match cost.cpu_ns {
            None => used.working_set_bytes,
            Some(_) => cost.working_set_bytes.zip(used.working_set_bytes).map(|(sum, bytes)| sum + bytes),
        };
        cost.cpu_ns = Some(cost.cpu_ns.unwrap_or(0) + cpu_ns);
    }

    /// Where nothing was measured it shows in that.
    const fn checked(mut self) -> Self {
        if self.cost.cpu_ns.is_none() {
            self.unmeasured_pods = 0;
        }
        self
    }
}

impl Pods {
    fn put(&mut self, pod: &api::Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        let mut entry = Entry::of(pod);
        // A pod's status loses the ids of its containers before the pod is deleted, and has others after each restart; whoever has
        // measured a proxy in one of them may ask later.
        if let Some(Ok(known)) = self.remove(&uid).map(Arc::try_unwrap) {
            let gone = |known: &Named| entry.containers.iter().all(|named| named.id != known.id);
            let gone: Vec<_> = known.containers.into_iter().filter(gone).collect();
            entry.containers.extend(gone);
            entry.containers.truncate(MAX_CONTAINERS);
        }
        if self.by_uid.len() >= MAX_PODS {
            if !self.full {
                warn!("this node has more than {MAX_PODS} pods; the others are not named");
            }
            self.full = true;
            return;
        }
        let entry = Arc::new(entry);
        for named in &entry.containers {
            self.by_container.insert(named.id.clone(), Arc::clone(&entry));
        }
        if let Some(hash) = &entry.hash {
            self.by_hash.insert(hash.clone(), Arc::clone(&entry));
        }
        self.by_uid.insert(uid, entry);
    }

    fn remove(&mut self, uid: &str) -> Option<Arc<Entry>> {
        let entry = self.by_uid.remove(uid)?;
        for named in &entry.containers {
            self.by_container.remove(&named.id);
        }
        // A static pod's mirror may have been made anew under the same hash before the old one goes.
        if let Some(hash) = &entry.hash
            && self.by_hash.get(hash).is_some_and(|held| Arc::ptr_eq(held, &entry))
        {
            self.by_hash.remove(hash);
        }
        Some(entry)
    }
}

impl Entry {
    fn of(pod: &api::Pod) -> Self {
        let api::Pod { metadata, spec, status } = pod;
        let annotations = metadata.annotations.iter().flatten();
        let hash =
            annotations.into_iter().find(|&(name, _)| name == CONFIG_HASH).map(|(_, value)| value.clone());
        let labels = metadata.labels.iter().flatten();
        let application = labels
            .clone()
            .filter_map(|(name, value)| Some((name.strip_prefix(APPLICATION)?.to_owned(), value.clone())))
            .collect();
        let telling = crate::identity::TELLING_LABELS;
        let labels = labels.filter_map(|(name, value)| {
            Some((*telling.iter().find(|telling| *telling == name)?, value.clone()))
        });
        Self {
            pod: Pod {
                name: metadata.name.clone().unwrap_or_default(),
                namespace: metadata.namespace.clone().unwrap_or_default(),
                uid: metadata.uid.clone(),
                node: spec.as_ref().and_then(|spec| spec.node_name.clone()),
                owner: owner(pod),
                container: None,
                image: None,
                application,
                source: Source::Api,
                labels: labels.collect(),
            },
            containers: containers(pod),
            hash,
            runs: status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running"),
        }
    }
}

/// The owner that controls it. A `Deployment` owns a `ReplicaSet`, which has its name and the hash of the pods' template.
fn owner(pod: &api::Pod) -> Option<Owner> {
    let metadata = &pod.metadata;
    let owners = metadata.owner_references.iter().flatten();
    let found = owners.into_iter().find(|owner| owner.controller == Some(true))?;
    let (kind, name) = (found.kind.clone(), found.name.clone());
    let hash = metadata.labels.as_ref().and_then(|labels| labels.get(TEMPLATE_HASH));
    let deployment = hash.and_then(|hash| name.strip_suffix(hash.as_str())?.strip_suffix('-'));
    Some(match deployment {
        Some(deployment) if kind == "ReplicaSet" => {
            Owner { kind: "Deployment".to_owned(), name: deployment.to_owned() }
        }
        _ => Owner { kind, name },
    })
}

/// Those that have an id, the kubelet's init and debug containers among them: a sidecar may be an init container that stays.
fn containers(pod: &api::Pod) -> Vec<Named> {
    let Some(status) = &pod.status else { return Vec::new() };
    let all =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let all = all.into_iter().flat_map(|statuses| statuses.iter().flatten());
    all.filter_map(|container| {
        // `containerd://<id>`
        let (_, id) = container.container_id.as_deref()?.split_once("://")?;
        let image = image(pod, &container.name).or_else(|| Some(container.image.clone()));
        Some(Named {
            id: id.to_owned(),
            name: container.name.clone(),
            image: image.filter(|image| !image.is_empty()),
        })
    })
    .collect()
}

/// As the pod asks for it. What the kubelet says instead is another name of the same image, where it has several.
fn image(pod: &api::Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let init = spec.init_containers.iter().flatten();
    let asked = spec.containers.iter().chain(init).find(|asked| asked.name == container);
    asked.and_then(|asked| asked.image.clone())
}
