//! A pod's name from the variables that meshes give to their proxies.

use std::collections::HashMap;

use procfs::process::Process;

use super::{Pod, Source};

/// The names of the variables for a pod's name, namespace and node. The first pair: Istio (sidecar, gateway, ztunnel), Consul's
/// dataplane, Kuma, by their injection templates; the second: Linkerd's `_proxy.tpl`.
const VARIABLES: [[&str; 4]; 2] = [
    ["POD_NAME", "POD_NAMESPACE", "NODE_NAME", ""],
    ["_pod_name", "_pod_ns", "_pod_nodeName", "_pod_containerName"],
];

/// The pod that a process's environment names; `None` where it names none, or may not be read.
pub fn of_process(pid: u32) -> Option<Pod> {
    let variables = Process::new(i32::try_from(pid).ok()?).ok()?.environ().ok()?;
    let wanted = VARIABLES.as_flattened();
    let variables: HashMap<_, _> = variables
        .into_iter()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, value)| wanted.contains(&name.as_str()) && !value.is_empty())
        .collect();
    pod(&variables)
}

fn pod(variables: &HashMap<String, String>) -> Option<Pod> {
    VARIABLES.iter().find_map(|[name, namespace, node, container]| {
        Some(Pod {
            name: variables.get(*name)?.clone(),
            namespace: variables.get(*namespace)?.clone(),
            node: variables.get(*node).cloned(),
            container: variables.get(*container).cloned(),
            source: Source::Environment,
            ..Pod::default()
        })
    })
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn found(variables: &[(&str, &str)]) -> Option<Pod> {
        let mut sleep =
            Command::new("sleep").arg("60").env_clear().envs(variables.iter().copied()).spawn().unwrap();
        let pod = of_process(sleep.id());
        sleep.kill().unwrap();
        sleep.wait().unwrap();
        pod
    }

    #[test]
    fn both_forms_and_nothing_by_halves() {
        let istio =
            found(&[("POD_NAME", "cart-1"), ("POD_NAMESPACE", "shop"), ("NODE_NAME", "node-a")]).unwrap();
        assert_eq!((istio.full_name().as_str(), istio.node.as_deref()), ("shop/cart-1", Some("node-a")));
        assert_eq!((istio.source, istio.is_complete()), (Source::Environment, false));
        let linkerd = found(&[
            ("_pod_name", "web-0"),
            ("_pod_ns", "emojivoto"),
            ("_pod_containerName", "linkerd-proxy"),
        ])
        .unwrap();
        assert_eq!(
            (linkerd.full_name().as_str(), linkerd.container.as_deref()),
            ("emojivoto/web-0", Some("linkerd-proxy"))
        );
        assert_eq!(found(&[("POD_NAME", "cart-1")]), None, "without a namespace");
        assert_eq!(found(&[("POD_NAME", ""), ("POD_NAMESPACE", "shop")]), None, "empty");
        assert_eq!(found(&[("_pod_name", "web-0"), ("POD_NAMESPACE", "shop")]), None, "of two forms");
    }
}
