//! The agent names the pod of a proxy by its control group: against recordings of a real API server, and without one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use bed::process::Child;
use bed::tools;
use serde_json::{Value, json};

mod replay;

/// The group of a recorded container, and of the static pod's.
const CART: &str = "pode8846e7d-ea70-4244-9090-4bc183b935bb/e2698b95806dde2aad4a990f413623736049433c555a4b2d37211a20c46ce074";
const EDGE: &str =
    "pod5c8089f7165e1672890cdc936c0d4b33/a772e915ec29ac1b9d4c21c38e43f5e62783c6ed7e2e44f32e3cb2a56b44b191";

/// A process that stands for a proxy, in a group named as a container's.
struct Proxy {
    child: Child,
    folders: Vec<PathBuf>,
}

impl Proxy {
    fn start(group: &str, variables: &[(&str, &str)]) -> Result<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]
            .map(Path::new)
            .into_iter()
            .find(|root| root.join("cgroup.procs").exists())
            .context("no control groups of version 2")?;
        let mut command = Command::new("sleep");
        command.arg("100").envs(variables.iter().copied());
        let child = Child::attached("sleep", &command)?;
        let mut folder = root.to_owned();
        let mut folders = Vec::new();
        let of_this_test = format!("smp-agent-test-{}/kubepods/besteffort/{group}", child.pid());
        for part in of_this_test.split('/') {
            folder.push(part);
            fs::create_dir(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            folders.push(folder.clone());
        }
        fs::write(folder.join("cgroup.procs"), child.pid().to_string())?;
        Ok(Self { child, folders })
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let root = self.folders[0].with_file_name("cgroup.procs");
        drop(fs::write(root, self.child.pid().to_string()));
        for folder in self.folders.iter().rev() {
            if let Err(error) = fs::remove_dir(folder) {
                eprintln!("cannot remove {}: {error}", folder.display());
            }
        }
    }
}

fn folder(name: &str) -> Result<PathBuf> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kubernetes").join(name);
    drop(fs::remove_dir_all(&folder));
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// What a window on these proxies says, and what was said beside.
fn measured(mut agent: Command, proxies: &[&Proxy], more: &[&str]) -> Result<(Value, String)> {
    agent.args(proxies.iter().map(|proxy| format!("--proxy={}", proxy.child.pid())));
    let Output { status, stdout, stderr } = agent.arg("--format=json").args(more).output()?;
    let said = String::from_utf8(stderr)?;
    ensure!(status.success(), "{status}: {said}");
    Ok((serde_json::from_slice(&stdout)?, said))
}

#[test]
fn containers_and_a_static_pod_by_their_control_groups() -> Result<()> {
    let folder = folder("names")?;
    let (address, _lists) = replay::server(Some(replay::recorded!("list.http")))?;
    let (cart, edge) = (Proxy::start(CART, &[])?, Proxy::start(EDGE, &[])?);
    let agent = replay::agent(&folder, &address)?;
    let out = folder.to_string_lossy();
    let (document, said) = measured(
        agent,
        &[&cart, &edge],
        &["--for=1s", "--kubernetes=on", "--node-name=node-a", "--out", &*out],
    )?;
    let pod_of = |proxy: &Proxy| {
        let proxies = document["proxies"].as_array().into_iter().flatten();
        let mut of_pid = proxies.filter(|found| found["pid"] == proxy.child.pid());
        of_pid.next().map(|found| found["pod"].clone()).context("it is not in the document")
    };
    let (cart, edge) = (pod_of(&cart)?, pod_of(&edge)?);
    assert_eq!(cart["name"], "cart-76fb7c756-wgczg", "{said}");
    assert_eq!(cart["owner"], json!({"kind": "Deployment", "name": "cart"}));
    assert_eq!((&cart["namespace"], &cart["container"]), (&json!("shop"), &json!("istio-proxy")));
    assert_eq!((&edge["name"], &edge["namespace"]), (&json!("edge-node-a"), &json!("kube-system")));
    assert_eq!(document["kubernetes"]["version"], "v1.20.2");
    assert!(!said.contains("WARN"), "{said}");
    let result: Value = serde_json::from_slice(&fs::read(folder.join("result.json"))?)?;
    assert_eq!(result["environment"]["kubernetes_version"], "v1.20.2");
    assert_eq!(result["mesh"]["application_metadata"]["application_name"], "cart");
    Ok(())
}

#[test]
fn what_is_forbidden_is_in_the_log_and_in_the_document_once() -> Result<()> {
    let folder = folder("forbidden")?;
    let (address, lists) = replay::server(Some(replay::recorded!("list-403.http")))?;
    let proxy = Proxy::start(CART, &[("POD_NAME", "cart-0"), ("POD_NAMESPACE", "shop")])?;
    let (document, said) = measured(
        replay::agent(&folder, &address)?,
        &[&proxy],
        &["--for=4s", "--kubernetes=on", "--node-name=node-a"],
    )?;
    let warnings: Vec<_> = said.lines().filter(|line| line.contains("WARN")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("forbids to list pods"), "{said}");
    assert!(lists.try_iter().count() >= 2, "it asks again");
    let in_document = document["warnings"].as_array().into_iter().flatten();
    let in_document =
        in_document.filter(|warning| warning.to_string().contains("forbids to list pods")).count();
    assert_eq!(in_document, 1, "{document}");
    // The next best.
    assert_eq!(
        document["proxies"][0]["pod"],
        json!({"name": "cart-0", "namespace": "shop", "source": "environment"})
    );
    Ok(())
}

#[test]
fn a_server_that_hangs_and_none_at_all_take_the_same_time() -> Result<()> {
    let folder = folder("hangs")?;
    let proxy = Proxy::start(CART, &[])?;
    let (address, _lists) = replay::server(None)?;
    let mut took = Vec::new();
    for mode in ["on", "off", "auto"] {
        let began = Instant::now();
        let mode = format!("--kubernetes={mode}");
        let (document, said) = measured(replay::agent(&folder, &address)?, &[&proxy], &["--for=1s", &mode])?;
        took.push(began.elapsed());
        assert_eq!(document["proxies"][0]["pod"], Value::Null);
        assert_eq!(document["proxies"][0]["pod_uid"], "e8846e7d-ea70-4244-9090-4bc183b935bb");
        assert_eq!(document.get("kubernetes").is_some(), mode.ends_with("on"), "{mode}");
        assert!(!said.contains("WARN"), "{said}");
    }
    let longest = took.iter().max().context("none")?;
    assert!(longest.as_secs() < if tools::emulated() { 100 } else { 10 }, "{took:?}");
    Ok(())
}

#[test]
fn without_a_configuration_on_is_an_error_and_auto_is_none() -> Result<()> {
    let folder = folder("none")?;
    let mut agent = replay::agent(&folder, "http://127.0.0.1:1")?;
    let Output { status, stderr, .. } = agent
        .env("KUBECONFIG", folder.join("no-such-file"))
        .args(["--kubernetes=on", "--for=1s", &format!("--proxy={}", std::process::id())])
        .output()?;
    let said = String::from_utf8(stderr)?;
    assert_eq!(status.code(), Some(78), "{said}");
    assert!(
        said.lines().count() == 1 && said.contains("KUBECONFIG") && said.contains("--kubernetes off"),
        "{said}"
    );
    Ok(())
}
