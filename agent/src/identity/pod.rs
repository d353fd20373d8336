//! What a proxy's pod, or any other, tells of the mesh it is in: by labels, names of containers and images, all of them documented
//! by those who give them or in their charts.

use std::collections::BTreeMap;

use super::{Identity, Kind, Mesh, Role};
use crate::kubernetes::Pod;

/// Labels of a pod that tell what it or a proxy in it is, all of them documented by those who set them or in their charts.
pub const TELLING_LABELS: [&str; 13] = [
    // Istio's charts and its controller of Gateway resources.
    "istio",
    "gateway.istio.io/managed",
    // Envoy Gateway.
    "gateway.envoyproxy.io/owning-gateway-name",
    // Open Service Mesh, on each pod that it has given a proxy.
    "osm-proxy-uuid",
    // Consul on Kubernetes: its injector and its chart's gateways.
    "consul.hashicorp.com/connect-inject-status",
    "component",
    // Control planes: of Istio, Open Service Mesh, Kuma and Network Service Mesh; with `component`, of Consul and Traefik Mesh.
    "app",
    // Kuma's chart, whatever its parts are called (kumahq/kuma `_helpers.tpl`: `kuma.chart`).
    "helm.sh/chart",
    // App Mesh (aws/eks-charts): `appmesh-controller` and `appmesh-gateway`, `templates/deployment.yaml`.
    "app.kubernetes.io/part-of",
    "app.kubernetes.io/component",
    "control-plane",
    "linkerd.io/control-plane-component",
    "io.cilium/app",
];

/// Whose control plane a pod with these labels is part of. By the labels that the meshes' own charts give to these pods.
pub fn control_plane(labels: &BTreeMap<&'static str, String>) -> Option<Mesh> {
    let label = |name: &str| labels.get(name).map(String::as_str);
    // `kuma-2.9.0`
    let is_of_chart = |name: &str| {
        let version = label("helm.sh/chart").and_then(|chart| chart.strip_prefix(name)?.strip_prefix('-'));
        version.is_some_and(|version| version.starts_with(|first: char| first.is_ascii_digit()))
    };
    match (label("app"), label("component")) {
        (Some("istiod"), _) => Some(Mesh::Istio),
        (Some("consul"), Some("server" | "connect-injector")) => Some(Mesh::Consul),
        (Some("kuma-control-plane"), _) => Some(Mesh::Kuma),
        // With `nameOverride`: Kong Mesh's chart has Kuma's in it and calls it `kong-mesh`.
        (Some(app), _) if app.ends_with("-control-plane") && is_of_chart("kuma") => Some(Mesh::Kuma),
        // networkservicemesh/deployments-k8s `nsmgr.yaml` and `nsmgr-proxy.yaml`, and its former chart's `nsmgr.tpl`, of two ages.
        // Its registry is `app: registry`, which may be any.
        (Some("nsmgr" | "nsmgr-proxy" | "nsmgr-daemonset" | "nsmmgr-daemonset"), _) => {
            Some(Mesh::NetworkServiceMesh)
        }
        (Some("osm-controller" | "osm-injector" | "osm-bootstrap"), _) => Some(Mesh::OpenServiceMesh),
        (Some("maesh"), Some("controller")) => Some(Mesh::TraefikMesh),
        _ if label("linkerd.io/control-plane-component").is_some() => Some(Mesh::Linkerd),
        _ if label("io.cilium/app") == Some("operator") => Some(Mesh::CiliumServiceMesh),
        // What of it runs in the cluster; the rest is the provider's.
        _ if label("app.kubernetes.io/part-of") == Some("appmesh") && label("control-plane").is_some() => {
            Some(Mesh::AppMesh)
        }
        _ => None,
    }
}

/// App Mesh's image of Envoy, whichever registry it is from (aws/eks-charts `appmesh-controller/values.yaml`).
const APP_MESH_IMAGE: &str = "aws-appmesh-envoy";

impl Identity {
    /// Adds what the proxy's pod tells. What the process itself shows stays.
    pub fn learn(&mut self, pod: &Pod) {
        let label = |name: &str| pod.labels.get(name).map(String::as_str);
        let container = pod.container.as_deref();
        let image = pod.image.as_deref().unwrap_or_default();
        let (mesh, role) = match (self.kind, self.mesh) {
            (Some(Kind::Envoy), Some(Mesh::Istio)) => (None, istio_role(label)),
            (Some(Kind::Envoy), Some(Mesh::Consul)) => (None, consul_role(label)),
            (Some(Kind::Envoy), Some(Mesh::Kuma)) => {
                (None, (container == Some("kuma-sidecar")).then_some(Role::Sidecar))
            }
            (Some(Kind::Envoy), None) if label("osm-proxy-uuid").is_some() && container == Some("envoy") => {
                (Some(Mesh::OpenServiceMesh), Some(Role::Sidecar))
            }
            (Some(Kind::Envoy), Some(Mesh::AppMesh)) => (None, app_mesh_role(label)),
            (Some(Kind::Envoy), None) if repository(image) == APP_MESH_IMAGE => {
                (Some(Mesh::AppMesh), app_mesh_role(label))
            }
            (Some(Kind::Envoy), None) if label("gateway.envoyproxy.io/owning-gateway-name").is_some() => {
                (None, Some(Role::Gateway))
            }
            (Some(Kind::Nginx), None) if container == Some("nginx-mesh-sidecar") => {
                (Some(Mesh::NginxServiceMesh), Some(Role::Sidecar))
            }
            // networkservicemesh/deployments-k8s `apps/`: `ghcr.io/networkservicemesh/cmd-nsmgr`, `networkservicemeshci/cmd-...`.
            (None, None) if image.contains("networkservicemesh") && repository(image).starts_with("cmd-") => {
                let forwards = repository(image).starts_with("cmd-forwarder-");
                (Some(Mesh::NetworkServiceMesh), forwards.then_some(Role::NodeProxy))
            }
            _ => (None, None),
        };
        self.mesh = self.mesh.or(mesh);
        // Istio's own word for both kinds of gateway is `router`.
        if self.role.is_none() || (self.role, role) == (Some(Role::Gateway), Some(Role::EgressGateway)) {
            self.role = role.or(self.role);
        }
    }
}

fn istio_role<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Option<Role> {
    match (label("gateway.istio.io/managed"), label("istio")) {
        (Some("istio.io-mesh-controller"), _) => Some(Role::Waypoint),
        (_, Some("egressgateway")) => Some(Role::EgressGateway),
        (Some("istio.io-gateway-controller"), _) | (_, Some("ingressgateway" | "eastwestgateway")) => {
            Some(Role::Gateway)
        }
        _ => None,
    }
}

fn consul_role<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Option<Role> {
    match (label("component"), label("consul.hashicorp.com/connect-inject-status")) {
        (Some("ingress-gateway" | "api-gateway" | "mesh-gateway"), _) => Some(Role::Gateway),
        (Some("terminating-gateway"), _) => Some(Role::EgressGateway),
        (_, Some("injected")) => Some(Role::Sidecar),
        _ => None,
    }
}

/// Sidecars are told by what they stand for only: no label is theirs.
fn app_mesh_role<'a>(label: impl Fn(&str) -> Option<&'a str>) -> Option<Role> {
    (label("app.kubernetes.io/component") == Some("appmesh-gateway")).then_some(Role::Gateway)
}

/// Of an image's name what stands behind registry and folders, without tag and digest.
pub(super) fn repository(image: &str) -> &str {
    let name = image.rsplit('/').next().unwrap_or_default();
    name.split([':', '@']).next().unwrap_or_default()
}
