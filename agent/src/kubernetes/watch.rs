//! The task that asks the API server and goes on asking.

use std::error::Error;
use std::fmt::Write as _;
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tracing::{debug, info, warn};

use super::{Known, api};

/// After so long without a first answer it is said that there is none.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one watch lasts, s; the server ends it then and the next begins where it was.
const WATCH_SECONDS: u32 = 290;
/// A connection that is silent for longer than a watch may be is dead.
const READ_TIMEOUT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// How long until the version is asked for again.
const RETRY: Duration = Duration::from_secs(30);
const INSTANCE_TYPE: &str = "node.kubernetes.io/instance-type";

/// Whom to ask, and for which node.
pub(super) struct Question {
    client: Client,
    server: String,
    node: String,
}

/// What has been said since the last answer, so that it is said once.
#[derive(Default)]
struct Said {
    answered: bool,
    kinds: Vec<&'static str>,
}

impl Said {
    /// Says what is wrong and what to do, each kind once until there is an answer.
    fn complain(&mut self, known: &watch::Sender<Known>, (kind, what, advice): (&'static str, &str, &str)) {
        let text = format!("pods are not named: {what}; {advice}");
        if self.kinds.contains(&kind) {
            return debug!("{text}");
        }
        warn!("{text}; asking goes on, measuring too");
        known.send_modify(|known| known.trouble = Some(text));
        self.kinds.push(kind);
    }
}

impl Question {
    pub(super) fn new(mut config: Config, node: &str) -> kube::Result<Self> {
        config.read_timeout = Some(READ_TIMEOUT);
        // Without a certificate of the cluster's own the client takes the machine's, and fails where there are none. In plain none is needed.
        if config.cluster_url.scheme_str() == Some("http") {
            config.root_cert.get_or_insert_default();
        }
        let server = config.cluster_url.to_string();
        Ok(Self { client: Client::try_from(config)?, server, node: node.to_owned() })
    }

    /// Asks until nobody wants to know any more.
    pub(super) async fn ask(self, known: watch::Sender<Known>) {
        tokio::join!(self.pods(&known), self.cluster(&known));
    }

    async fn pods(&self, known: &watch::Sender<Known>) {
        let pods: Api<api::Pod> = Api::all(self.client.clone());
        // From the server's cache, which takes no pages: thousands of agents that begin at once must not read its database.
        let mut selection = watcher::Config::default()
            .fields(&format!("spec.nodeName={}", self.node))
            .timeout(WATCH_SECONDS)
            .any_semantic();
        selection.page_size = None;
        let mut events = pin!(watcher(pods, selection).default_backoff());
        let mut said = Said::default();
        loop {
            let event = if said.answered || !said.kinds.is_empty() {
                events.next().await
            } else if let Ok(event) = timeout(PATIENCE, events.next()).await {
                event
            } else {
                let text = format!("{} has not answered for {} s", self.server, PATIENCE.as_secs());
                let advice = "check the network between this node and the API server";
                said.complain(known, ("silent", &text, advice));
                continue;
            };
            match event {
                Some(Ok(event)) => self.take(&mut said, known, event),
                Some(Err(error)) => self.failed(&mut said, known, &error),
                None => return,
            }
        }
    }

    fn take(&self, said: &mut Said, known: &watch::Sender<Known>, event: Event<api::Pod>) {
        // `Init` is no answer yet.
        let (answer, listed) = (!matches!(event, Event::Init), matches!(event, Event::InitDone));
        known.send_modify(|known| known.index.take(event));
        if !answer {
            return;
        }
        said.answered = true;
        if listed && known.borrow().index.is_empty() {
            let text = format!("{} knows no pod on a node named {}", self.server, self.node);
            let advice = "give the node's name in the cluster with --node-name or NODE_NAME";
            return said.complain(known, ("empty", &text, advice));
        }
        if !said.kinds.is_empty() {
            said.kinds.clear();
            info!("{} answers: pods are named", self.server);
            known.send_modify(|known| known.trouble = None);
        }
    }

    fn failed(&self, said: &mut Said, known: &watch::Sender<Known>, error: &watcher::Error) {
        let (verb, cause) = match error {
            watcher::Error::InitialListFailed(cause) => ("list", cause),
            watcher::Error::WatchStartFailed(cause) => ("watch", cause),
            // A watch that ends or is too old (410) begins again: no trouble unless that fails.
            other => return debug!("{}: {}", self.server, chain(other)),
        };
        let server = &self.server;
        let (kind, what, advice) = match cause {
            kube::Error::Api(status) if status.code == 410 => return debug!("{server}: {}", status.message),
            kube::Error::Api(status) if status.code == 403 => (
                verb,
                format!("{server} forbids to {verb} pods: {}", status.message),
                "allow the agent's service account to list and watch pods in all namespaces (deploy/rbac.yaml)",
            ),
            kube::Error::Api(status) if status.code == 401 => (
                "credentials",
                format!("{server} does not take the agent's credentials: {}", status.message),
                "check the service account's token, or log in again",
            ),
            cause => (
                "other",
                format!("{server} cannot be asked: {}", chain(cause)),
                "check that it runs and can be reached from this node",
            ),
        };
        said.complain(known, (kind, &what, advice));
    }

    /// What is asked for once: the server's version, which everybody may know, and the node, which may be forbidden.
    async fn cluster(&self, known: &watch::Sender<Known>) {
        let version = loop {
            match self.client.apiserver_version().await {
                Ok(version) => break version.git_version,
                Err(error) => debug!("{}: version: {}", self.server, chain(&error)),
            }
            sleep(RETRY).await;
        };
        known.send_modify(|known| known.version = Some(version));
        let nodes: Api<api::Node> = Api::all(self.client.clone());
        match nodes.get(&self.node).await {
            Ok(node) => {
                let label = node.metadata.labels.and_then(|mut labels| labels.remove(INSTANCE_TYPE));
                known.send_modify(|known| known.instance_type = label);
            }
            Err(error) => debug!("{}: node {}: {}", self.server, self.node, chain(&error)),
        }
    }
}

/// An error and what is behind it.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut at = error.source();
    while let Some(cause) = at {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // A string takes all that is written to it.
            let _written = write!(text, ": {cause_text}");
        }
        at = cause.source();
    }
    text
}
