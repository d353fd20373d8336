//! Against what a real API server and kubelet answered, byte for byte: `agent/recorded/kubernetes`.

use std::time::Duration;

use kube::runtime::watcher::Event;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::{Receiver, Sender};
use tokio::time::{Instant, timeout};

use super::*;
use crate::cgroup::pods::PodUse;

/// Longer than anything here takes.
const DEADLINE: Duration = Duration::from_secs(20);

macro_rules! recorded {
    ($name:literal) => {
        include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/recorded/kubernetes/", $name))
    };
}

const LIST: &str = recorded!("list.http");
const WATCH: &str = recorded!("watch.http");
/// The containers of the recorded pods, and the pods of those.
const CART: &str = "a1b0c5ce7ed5a9bb80b674c2c6376b2713b3cb17d7d30bd6cb2a566bc3672d0e";
const CART_PROXY: &str = "e2698b95806dde2aad4a990f413623736049433c555a4b2d37211a20c46ce074";
const CART_UID: &str = "e8846e7d-ea70-4244-9090-4bc183b935bb";
const GATEWAY: &str = "314433c55ade7997ac7aeeec6e3e9208676b7df0ee71c02cc7ea48de02ed1c35";
const ZTUNNEL: &str = "0ad1d7e539e6efc89b98b507a05ce5494c7a1f83e63afc2a9cb6dd247f8e3dc8";
const LONE: &str = "187e94dcbf1c627d1cc9dd163950027d12abf55f39598d5d5706740e8eae491d";
const EDGE: &str = "a772e915ec29ac1b9d4c21c38e43f5e62783c6ed7e2e44f32e3cb2a56b44b191";
const EDGE_HASH: &str = "5c8089f7165e1672890cdc936c0d4b33";
const LATE: &str = "105858f145ff241fe2353495aacfbec8177eab913863140b07a263f9df69c719";
const LATE_UID: &str = "25d2baf0-eea0-46ce-95c8-502d9bc6d16a";

/// A server that answers with recordings. A watch gets what there is for it so far, then more as it comes, and no end.
struct Server {
    config: Config,
    list: Sender<&'static str>,
    /// What each watch gets, in the order that they are asked for.
    watches: Sender<Vec<&'static str>>,
    requests: Sender<Vec<String>>,
}

impl Server {
    async fn start(list: &'static str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let (list, watches, requests) = (Sender::new(list), Sender::new(Vec::new()), Sender::new(Vec::new()));
        let server = Self { config: config.clone(), list, watches, requests };
        let of_task = Self {
            config,
            list: server.list.clone(),
            watches: server.watches.clone(),
            requests: server.requests.clone(),
        };
        tokio::spawn(async move {
            let of_task = std::sync::Arc::new(of_task);
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(answer(std::sync::Arc::clone(&of_task), stream));
            }
        });
        server
    }

    fn asked(&self, start: &str) -> Vec<String> {
        self.requests.borrow().iter().filter(|request| request.starts_with(start)).cloned().collect()
    }

    fn names(&self) -> Names {
        Names::ask(self.config.clone(), "node-a").unwrap()
    }
}

const PODS: &str = "/api/v1/pods?";

/// One request after the other.
async fn answer(server: std::sync::Arc<Server>, mut stream: TcpStream) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap().to_owned();
        let is_watch = path.contains("watch=true");
        let number = server.requests.borrow().iter().filter(|request| request.contains("watch=true")).count();
        server.requests.send_modify(|requests| requests.push(path.clone()));
        if is_watch {
            if watch(&mut stream, server.watches.subscribe(), number).await {
                continue;
            }
            return;
        }
        let whole = match path.split('?').next().unwrap() {
            "/version" => recorded!("version.http"),
            "/api/v1/nodes/node-a" => recorded!("node.http"),
            "/api/v1/pods" => *server.list.borrow(),
            other => panic!("{other} was not to be asked for"),
        };
        // A client that is gone wants no more.
        if stream.write_all(whole.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// True when the watch has come to its end, so that another request may follow.
async fn watch(stream: &mut TcpStream, mut texts: Receiver<Vec<&'static str>>, number: usize) -> bool {
    let mut sent = 0;
    loop {
        let text = texts.borrow_and_update().get(number).copied().unwrap_or_default();
        let gone = stream.write_all(&text.as_bytes()[sent..]).await.is_err();
        sent = text.len();
        if text.ends_with("\r\n0\r\n\r\n") || text.contains("\r\nContent-Length: ") {
            return !gone;
        }
        if gone || texts.changed().await.is_err() {
            return false;
        }
    }
}

/// The recorded watch until its event `count` has ended.
fn events(count: usize) -> &'static str {
    let end = WATCH.match_indices("\n{\"type\":").map(|(at, _)| at).chain([WATCH.len()]).nth(count).unwrap();
    // The size of the next chunk belongs to the next event.
    &WATCH[..=WATCH[..end].trim_end().rfind('\n').unwrap()]
}

async fn until(names: &mut Names, known: impl Fn(&Names) -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !known(names) {
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {:?}", names.cluster(None));
        let _later = timeout(Duration::from_millis(100), names.known.changed()).await;
    }
}

fn container(id: &str) -> Container {
    Container { id: Some(id.to_owned()), ..Container::default() }
}

fn of_uid(uid: &str) -> Container {
    Container { pod_uid: Some(uid.to_owned()), ..Container::default() }
}

/// Full name, container, owner.
fn shown(pod: Option<Pod>) -> (String, Option<String>, Option<String>) {
    let pod = pod.unwrap_or_default();
    let owner = pod.owner.as_ref().map(|owner| format!("{}/{}", owner.kind, owner.name));
    (pod.full_name(), pod.container, owner)
}

fn want(
    full_name: &str,
    container: Option<&str>,
    owner: Option<&str>,
) -> (String, Option<String>, Option<String>) {
    (full_name.to_owned(), container.map(str::to_owned), owner.map(str::to_owned))
}

/// What is logged on this thread while it lives.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn listen(&self) -> tracing::subscriber::DefaultGuard {
        let lines = self.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("smp_agent=info")
            .with_ansi(false)
            .with_writer(move || lines.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    fn of(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        text.lines().filter(|line| line.contains(level)).map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn containers_have_the_names_of_their_pods() {
    let server = Server::start(LIST).await;
    let mut names = server.names();
    until(&mut names, |names| {
        names.pod(&container(CART)).is_some() && names.cluster(None).instance_type.is_some()
    })
    .await;
    let found = |id: &str| shown(names.pod(&container(id)));
    let cart = "shop/cart-76fb7c756-wgczg";
    assert_eq!(found(CART), want(cart, Some("cart"), Some("Deployment/cart")));
    assert_eq!(found(CART_PROXY), want(cart, Some("istio-proxy"), Some("Deployment/cart")));
    let gateway = "istio-system/istio-ingressgateway-597f8f9ffb-zjv48";
    let deployment = Some("Deployment/istio-ingressgateway");
    assert_eq!(found(GATEWAY), want(gateway, Some("istio-proxy"), deployment));
    let ztunnel = "istio-system/ztunnel-7cm7r";
    assert_eq!(found(ZTUNNEL), want(ztunnel, Some("istio-proxy"), Some("DaemonSet/ztunnel")));
    assert_eq!(found(LONE), want("default/lone", Some("envoy"), None));
    assert_eq!(names.pod(&container(&"0".repeat(64))), None);

    let proxy = names.pod(&container(CART_PROXY)).unwrap();
    assert_eq!((proxy.uid.as_deref(), proxy.node.as_deref()), (Some(CART_UID), Some("node-a")));
    assert_eq!(proxy.image.as_deref(), Some("docker.io/istio/proxyv2:1.24.0"));
    let application = [("name", "cart"), ("part-of", "shop"), ("version", "2.3.1")];
    assert_eq!(proxy.application, application.map(|(name, value)| (name.into(), value.into())).into());
    assert_eq!(names.pod(&container(GATEWAY)).unwrap().labels["istio"], "ingressgateway");
    assert!(proxy.is_complete());

    let cluster = names.cluster(None);
    assert_eq!(cluster.version.as_deref(), Some("v1.20.2"));
    assert_eq!(cluster.instance_type.as_deref(), Some("bed.small"));
    let workloads = cluster.workloads.iter();
    let workloads: Vec<_> = workloads
        .map(|of| format!("{}/{}/{}: {}", of.namespace, of.owner.kind, of.owner.name, of.pods))
        .collect();
    assert_eq!(
        workloads,
        [
            "default/Pod/lone: 1",
            "istio-system/DaemonSet/ztunnel: 1",
            "istio-system/Deployment/istio-ingressgateway: 1",
            "kube-system/Pod/edge-node-a: 1",
            "shop/Deployment/cart: 1"
        ]
    );
    until(&mut names, |_| server.asked(PODS).len() >= 2).await;
    let asked = server.asked(PODS);
    assert!(asked.iter().all(|asked| asked.contains("fieldSelector=spec.nodeName%3Dnode-a")), "{asked:?}");
    assert!(asked[0].contains("resourceVersion=0") && asked[1].contains("resourceVersion=421"), "{asked:?}");
}

#[tokio::test]
async fn real_control_groups_lead_to_their_pods_static_ones_by_hash() {
    let server = Server::start(LIST).await;
    let mut names = server.names();
    until(&mut names, |names| names.pod(&container(EDGE)).is_some()).await;
    // An id, then the file `/proc/<pid>/cgroup` of that container's process.
    let mut found = BTreeMap::new();
    let mut id = "";
    for line in recorded!("cgroups.txt").lines() {
        match line.splitn(3, ':').collect::<Vec<_>>()[..] {
            [of] => id = of,
            [_, "memory" | "", path] => {
                let container = Container::of(path);
                assert_eq!(container.id.as_deref(), Some(id), "{line}");
                let uid = container.pod_uid.clone().unwrap();
                // The kubelet has not called the container yet.
                let early = names.pod(&of_uid(&uid)).unwrap();
                assert!(!early.is_complete(), "{early:?}");
                let pod = names.pod(&container).unwrap();
                assert_eq!(pod.name, early.name);
                found.insert(id, (uid, pod));
            }
            _ => {}
        }
    }
    assert_eq!(found.len(), 6, "two of cart, one of each other pod");
    let (uid, edge) = &found[EDGE];
    assert_eq!((uid.as_str(), edge.full_name().as_str()), (EDGE_HASH, "kube-system/edge-node-a"));
    assert_eq!(edge.owner, Some(Owner { kind: "Node".into(), name: "node-a".into() }));
    assert_ne!(edge.uid.as_deref(), Some(EDGE_HASH), "the mirror has a uid of its own");
    // For the kubelet itself the hash is the uid.
    assert!(recorded!("kubelet-pods.http").contains(&format!("\"uid\":\"{EDGE_HASH}\"")));
    for (id, (uid, pod)) in found.iter().filter(|(id, _)| **id != EDGE) {
        assert_eq!(pod.uid.as_ref(), Some(uid), "{id}");
    }
}

#[tokio::test]
async fn a_pod_that_comes_and_goes() {
    let server = Server::start(LIST).await;
    let mut names = server.names();
    until(&mut names, |names| {
        names.pod(&container(CART)).is_some() && names.cluster(None).instance_type.is_some()
    })
    .await;
    let (by_id, by_uid) = (container(LATE), of_uid(LATE_UID));
    assert_eq!((names.pod(&by_id), names.pod(&by_uid)), (None, None));
    let late = |container| want("shop/late", container, None);

    server.watches.send_replace(vec![events(1)]);
    until(&mut names, |names| names.pod(&by_uid).is_some()).await;
    assert_eq!((names.pod(&by_id), shown(names.pod(&by_uid))), (None, late(None)), "added, no container yet");
    server.watches.send_replace(vec![events(3)]);
    until(&mut names, |names| names.pod(&by_id).is_some()).await;
    assert_eq!(shown(names.pod(&by_id)), late(Some("istio-proxy")), "runs");
    names.known.mark_unchanged();
    let runs = |names: &Names| names.cluster(None).workloads.iter().any(|of| of.owner.name == "late");
    assert!(runs(&names));
    for count in 4..=6 {
        server.watches.send_replace(vec![events(count)]);
        timeout(DEADLINE, names.known.changed()).await.unwrap().unwrap();
        assert_eq!(shown(names.pod(&by_id)), late(Some("istio-proxy")), "event {count}");
    }
    let last = events(6).rsplit("\n{\"type\":").next().unwrap();
    let ends = last.starts_with("\"MODIFIED\"") && !last.contains("containerID");
    assert!(ends, "no container id any more: {last}");
    server.watches.send_replace(vec![events(7)]);
    until(&mut names, |names| names.pod(&by_id).is_none() && names.pod(&by_uid).is_none()).await;
    assert!(!runs(&names) && names.pod(&container(CART)).is_some());

    // The bookmarks, and the watch's end: the next one begins where the last bookmark was, without a new list.
    server.watches.send_replace(vec![WATCH]);
    let again = || server.asked(PODS).iter().any(|asked| asked.contains("resourceVersion=450"));
    until(&mut names, |_| again()).await;
    assert_eq!(server.asked(PODS).iter().filter(|asked| !asked.contains("watch=true")).count(), 1);
    assert_eq!(names.cluster(None).trouble, None);
}

#[tokio::test]
async fn a_version_that_is_too_old_begins_again_without_a_word() {
    let lines = Lines::default();
    let _listening = lines.listen();
    let server = Server::start(LIST).await;
    server.watches.send_replace(vec![recorded!("watch-410.http"), events(3)]);
    let mut names = server.names();
    until(&mut names, |names| names.pod(&container(LATE)).is_some()).await;
    assert_eq!(
        server.asked(PODS).iter().filter(|asked| !asked.contains("watch=true")).count(),
        2,
        "a new list"
    );
    assert!(names.pod(&container(CART)).is_some());
    assert_eq!((names.cluster(None).trouble, lines.of("WARN")), (None, Vec::new()));
}

#[tokio::test]
async fn what_is_forbidden_is_said_once_with_what_to_allow_and_asked_again() {
    let lines = Lines::default();
    let _listening = lines.listen();
    let server = Server::start(recorded!("list-403.http")).await;
    let mut names = server.names();
    let lists = || server.asked(PODS).len();
    until(&mut names, |_| lists() >= 2).await;
    let trouble = names.cluster(None).trouble.unwrap();
    for part in [
        "forbids to list pods",
        "system:serviceaccount:smp-agent:nobody",
        "list and watch pods",
        "deploy/rbac.yaml",
    ] {
        assert!(trouble.contains(part), "{part}: {trouble}");
    }
    let said = lines.of("WARN");
    assert!(said.len() == 1 && said[0].contains(&trouble), "{said:?}");
    // Once it is allowed, names come.
    server.list.send_replace(LIST);
    until(&mut names, |names| names.pod(&container(CART)).is_some()).await;
    assert_eq!((names.cluster(None).trouble, lines.of("WARN").len()), (None, 1));
    assert_eq!(lines.of("answers: pods are named").len(), 1);
}

#[tokio::test]
async fn a_watch_that_is_forbidden_leaves_the_names_of_the_list() {
    let server = Server::start(LIST).await;
    server.watches.send_replace(vec![recorded!("watch-403.http")]);
    let mut names = server.names();
    until(&mut names, |names| names.cluster(None).trouble.is_some()).await;
    assert!(names.cluster(None).trouble.unwrap().contains("forbids to watch pods"));
    assert!(names.pod(&container(CART)).is_some());
}

#[tokio::test]
async fn other_refusals_have_their_own_advice() {
    for (list, parts) in [
        (recorded!("list-401.http"), ["does not take the agent's credentials", "token"]),
        (recorded!("list-empty.http"), ["knows no pod on a node named node-a", "--node-name"]),
    ] {
        let server = Server::start(list).await;
        let mut names = server.names();
        until(&mut names, |names| names.cluster(None).trouble.is_some()).await;
        let trouble = names.cluster(None).trouble.unwrap();
        assert!(parts.iter().all(|part| trouble.contains(part)), "{trouble}");
    }
    // Nobody listens any more.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    drop(listener);
    let mut names = Names::ask(config, "node-a").unwrap();
    until(&mut names, |names| names.cluster(None).trouble.is_some()).await;
    let trouble = names.cluster(None).trouble.unwrap();
    assert!(trouble.contains("cannot be asked") && trouble.contains("refused"), "{trouble}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_delays_nothing_and_is_said() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = Config::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    let begun = Instant::now();
    let mut names = Names::ask(config, "node-a").unwrap();
    assert_eq!(names.pod(&container(CART)), None);
    assert_eq!(names.cluster(None), Cluster { node: "node-a".into(), ..Cluster::default() });
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody has waited");
    until(&mut names, |names| names.cluster(None).trouble.is_some()).await;
    assert!(names.cluster(None).trouble.unwrap().contains("has not answered for 10 s"));
    assert!(begun.elapsed() < Duration::from_secs(12), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn without_a_cluster_nobody_is_asked() {
    assert!(Names::start(Mode::Off, "node-a").await.unwrap().is_none());
    let in_pod = std::env::var_os("KUBERNETES_SERVICE_HOST").is_some();
    assert!(in_pod || Names::start(Mode::Auto, "node-a").await.unwrap().is_none());
}

/// The recorded cart under another uid.
fn pod_of(uid: &str) -> api::Pod {
    let body = LIST.split_once("\r\n\r\n").unwrap().1;
    let (_, json) = body.split_once("\r\n").unwrap();
    let (json, _) = json.rsplit_once("\r\n0\r\n").unwrap();
    let list: Value = serde_json::from_str(json).unwrap();
    let mut items = list["items"].as_array().unwrap().iter();
    let cart = items.find(|pod| pod["metadata"]["uid"] == CART_UID).unwrap().clone();
    let mut pod: api::Pod = serde_json::from_value(cart).unwrap();
    pod.metadata.uid = Some(uid.to_owned());
    pod
}

#[test]
fn a_list_takes_the_place_of_what_was_known_when_it_has_ended() {
    let mut index = Index::default();
    index.take(Event::Apply(pod_of("a")));
    index.take(Event::Init);
    index.take(Event::InitApply(pod_of("b")));
    assert!(index.pod(&of_uid("a")).is_some() && index.pod(&of_uid("b")).is_none());
    index.take(Event::InitDone);
    assert!(index.pod(&of_uid("a")).is_none() && index.pod(&of_uid("b")).is_some());
}

/// Used by a pod's group.
fn used(cpu_ns: u64, working_set_bytes: u64) -> PodUse {
    PodUse { cpu_ns: Some(cpu_ns), working_set_bytes: Some(working_set_bytes) }
}

fn of_groups(groups: &[(&str, PodUse)]) -> PodsUse {
    let pods = groups.iter().map(|&(uid, used)| (uid.to_owned(), used)).collect();
    PodsUse { pods, ..PodsUse::default() }
}

#[tokio::test]
async fn workloads_have_what_the_groups_of_their_pods_used_static_ones_by_hash() {
    let server = Server::start(LIST).await;
    let mut names = server.names();
    until(&mut names, |names| names.pod(&container(EDGE)).is_some()).await;
    let mut window = crate::document::tests::window();
    window.pods = Some(of_groups(&[(CART_UID, used(500_000_000, 7)), (EDGE_HASH, used(20, 8))]));
    let workloads = names.cluster(Some(&window)).workloads;
    let of = |name: &str| workloads.iter().find(|workload| workload.owner.name == name).unwrap();
    let cart = of("cart");
    assert_eq!(
        (cart.cost.cpu_ns, cart.cost.cpu_cores, cart.cost.working_set_bytes),
        (Some(500_000_000), Some(0.25), Some(7))
    );
    assert_eq!((of("edge-node-a").cost.cpu_ns, of("edge-node-a").is_whole()), (Some(20), true));
    let lone = serde_json::to_value(of("lone")).unwrap();
    assert_eq!(lone, serde_json::json!({"namespace": "default", "kind": "Pod", "name": "lone", "pods": 1}));
}

#[test]
fn pods_of_one_owner_add_up_and_those_that_are_missing_are_said() {
    let mut index = Index::default();
    for uid in ["a", "b", "c"] {
        let mut pod = pod_of(uid);
        pod.metadata.labels.get_or_insert_default().insert("app".into(), "istiod".into());
        index.take(Event::Apply(pod));
    }
    let workload = |groups: &[(&str, PodUse)]| {
        let mut workloads = index.workloads(&of_groups(groups));
        assert_eq!(workloads.len(), 1);
        workloads.remove(0)
    };
    let all = workload(&[("a", used(1, 10)), ("b", used(2, 20)), ("c", used(3, 30)), ("d", used(9, 90))]);
    assert_eq!((all.pods, all.cost.cpu_ns, all.cost.working_set_bytes), (3, Some(6), Some(60)));
    assert_eq!((all.is_whole(), all.control_plane_of), (true, Some(Mesh::Istio)));
    let part = workload(&[("a", used(1, 10)), ("c", PodUse { cpu_ns: None, ..used(0, 30) })]);
    assert_eq!((part.unmeasured_pods, part.cost.cpu_ns, part.cost.working_set_bytes), (2, Some(1), Some(10)));
    let without_memory = PodUse { working_set_bytes: None, ..used(2, 0) };
    let some = workload(&[("a", used(1, 10)), ("b", without_memory), ("c", used(3, 30))]);
    assert_eq!((some.cost.cpu_ns, some.cost.working_set_bytes, some.is_whole()), (Some(6), None, true));
    let none = workload(&[]);
    assert_eq!((none.pods, none.unmeasured_pods, none.cost.cpu_ns), (3, 0, None));
}

#[test]
fn memory_is_bounded() {
    let mut index = Index::default();
    let pod = pod_of("");
    for number in 0..5_000 {
        let mut pod = pod.clone();
        pod.metadata.uid = Some(number.to_string());
        index.take(Event::Apply(pod));
    }
    assert!(index.pod(&of_uid("4095")).is_some() && index.pod(&of_uid("4096")).is_none());
    // A container that begins anew each time.
    let mut index = Index::default();
    for number in 0..1_000 {
        let mut pod = pod.clone();
        let statuses = pod.status.as_mut().unwrap().container_statuses.as_mut().unwrap();
        statuses[0].container_id = Some(format!("containerd://{number}"));
        pod.metadata.uid = Some("a".into());
        index.take(Event::Apply(pod));
    }
    let known = (0..1_000).filter(|number| index.pod(&container(&number.to_string())).is_some()).count();
    assert!((2..=64).contains(&known), "{known}");
    assert!(index.pod(&container("999")).is_some() && index.pod(&container("998")).is_some());
}
