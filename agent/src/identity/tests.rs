use std::io::Read as _;
use std::process::{Command, Stdio};

use super::pod::repository;
use super::*;
use crate::kubernetes::Pod;

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
    let app_mesh = |resource: Option<&str>| Facts {
        variables: vec!["APPMESH_RESOURCE_ARN".into()],
        app_mesh_resource: resource.map(str::to_owned),
        ..facts("envoy")
    };
    for (resource, role) in [
        (Some("arn:aws:appmesh:eu-central-1:111122223333:mesh/shop/virtualNode/cart"), Some(Role::Sidecar)),
        (Some("mesh/shop/virtualGateway/edge"), Some(Role::Gateway)),
        (Some("cart"), None),
        (None, None),
    ] {
        assert_eq!(found(&app_mesh(resource)), (envoy, Some(Mesh::AppMesh), role), "{resource:?}");
    }
    let traefik = (Some(Kind::Traefik), Some(Mesh::TraefikMesh), Some(Role::NodeProxy));
    assert_eq!(found(&facts("traefik-mesh")), traefik);
    for plain in ["envoy", "nginx", "haproxy", "traefik"] {
        let (kind, mesh, role) = found(&facts(plain));
        assert!(kind.is_some() && mesh.is_none() && role.is_none(), "{plain}");
    }
    assert_eq!(found(&facts("toy")), (None, None, None));
}

#[test]
fn a_pod_tells_what_the_process_does_not() {
    let told = |name: &str,
                mesh: Option<Mesh>,
                role: Option<Role>,
                container: &str,
                labels: &[(&'static str, &str)]| {
        let mut identity = Identity { mesh, role, ..Identity::of(&facts(name)) };
        identity.learn(&Pod {
            container: Some(container.into()),
            labels: labels.iter().map(|&(name, value)| (name, value.to_owned())).collect(),
            ..Pod::default()
        });
        (identity.mesh, identity.role)
    };
    let (istio, consul) = (Some(Mesh::Istio), Some(Mesh::Consul));
    let gateway = Some(Role::Gateway);
    let egress = [("istio", "egressgateway")];
    assert_eq!(told("envoy", istio, gateway, "istio-proxy", &egress), (istio, Some(Role::EgressGateway)));
    let ingress = [("istio", "ingressgateway")];
    assert_eq!(told("envoy", istio, None, "istio-proxy", &ingress), (istio, gateway));
    let waypoint = [("gateway.istio.io/managed", "istio.io-mesh-controller")];
    assert_eq!(told("envoy", istio, None, "istio-proxy", &waypoint), (istio, Some(Role::Waypoint)));
    let sidecar = Some(Role::Sidecar);
    assert_eq!(told("envoy", istio, sidecar, "istio-proxy", &egress), (istio, sidecar), "what shows stays");
    let injected = [("consul.hashicorp.com/connect-inject-status", "injected")];
    assert_eq!(told("envoy", consul, None, "consul-dataplane", &injected), (consul, sidecar));
    assert_eq!(told("envoy", consul, None, "gateway", &[("component", "api-gateway")]), (consul, gateway));
    assert_eq!(told("envoy", Some(Mesh::Kuma), None, "kuma-sidecar", &[]), (Some(Mesh::Kuma), sidecar));
    let osm = [("osm-proxy-uuid", "5d1e")];
    assert_eq!(told("envoy", None, None, "envoy", &osm), (Some(Mesh::OpenServiceMesh), sidecar));
    assert_eq!(told("envoy", None, None, "app", &osm), (None, None), "an Envoy of the application's own");
    assert_eq!(told("nginx", None, None, "nginx-mesh-sidecar", &[]), (Some(Mesh::NginxServiceMesh), sidecar));
    let owned = [("gateway.envoyproxy.io/owning-gateway-name", "eg")];
    assert_eq!(told("envoy", None, None, "envoy", &owned), (None, gateway));
    assert_eq!(told("nginx", None, None, "nginx", &[("component", "api-gateway")]), (None, None));
}

#[test]
fn an_image_tells_where_the_environment_may_not_be_read() {
    let told = |name: &str, container: &str, image: &str, labels: &[(&'static str, &str)]| {
        let mut identity = Identity::of(&facts(name));
        identity.learn(&Pod {
            container: Some(container.into()),
            image: Some(image.into()),
            labels: labels.iter().map(|&(name, value)| (name, value.to_owned())).collect(),
            ..Pod::default()
        });
        (identity.mesh, identity.role)
    };
    let of_app_mesh = "840364872350.dkr.ecr.us-west-2.amazonaws.com/aws-appmesh-envoy:v1.29.5.0-prod";
    let component = [("app.kubernetes.io/component", "appmesh-gateway")];
    assert_eq!(told("envoy", "envoy", of_app_mesh, &[]), (Some(Mesh::AppMesh), None));
    assert_eq!(told("envoy", "envoy", of_app_mesh, &component), (Some(Mesh::AppMesh), Some(Role::Gateway)));
    assert_eq!(told("envoy", "envoy", "envoyproxy/envoy:v1.29.5", &component), (None, None));
    assert_eq!(told("nginx", "envoy", of_app_mesh, &[]), (None, None));
    let network = Some(Mesh::NetworkServiceMesh);
    let forwarder = "ghcr.io/networkservicemesh/ci/cmd-forwarder-vpp:0258b04f";
    assert_eq!(told("forwarder", "forwarder-vpp", forwarder, &[]), (network, Some(Role::NodeProxy)));
    assert_eq!(told("nsmgr", "nsmgr", "networkservicemeshci/cmd-nsmgr:4a2fe09", &[]), (network, None));
    assert_eq!(told("toy", "toy", "ghcr.io/networkservicemesh/toy:1", &[]), (None, None));
    assert_eq!(told("envoy", "sidecar", forwarder, &[]), (None, None), "an Envoy is no program of its own");
    for image in ["a/b/name", "name", "a:5000/name:1", "a/name:1@sha256:0a", "name@sha256:0a"] {
        assert_eq!(repository(image), "name", "{image}");
    }
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
fn names_are_those_of_the_documents() {
    let meshes = [
        Mesh::AppMesh,
        Mesh::CiliumServiceMesh,
        Mesh::Consul,
        Mesh::Istio,
        Mesh::Kuma,
        Mesh::Linkerd,
        Mesh::NetworkServiceMesh,
        Mesh::NginxServiceMesh,
        Mesh::OpenServiceMesh,
        Mesh::TraefikMesh,
    ];
    for mesh in meshes {
        assert_eq!(serde_json::to_value(mesh).unwrap(), mesh.as_str());
    }
    // SMP's own list: what is neither here nor known to be out of reach is missing.
    let proto = include_str!("../../proto/service_mesh.proto");
    let (_, values) = proto.split_once("enum Type {").unwrap();
    let (values, _) = values.split_once('}').unwrap();
    let mut named: Vec<_> =
        values.lines().filter_map(|line| Some(line.split_once(" = ")?.0.trim())).collect();
    named.retain(|name| !["INVALID_MESH", "OCTARINE", "TANZU"].contains(name));
    named.sort_unstable();
    assert_eq!(named, meshes.map(Mesh::as_str));
    for role in [Role::NodeProxy, Role::Gateway, Role::EgressGateway] {
        assert_eq!(serde_json::to_value(role).unwrap(), role.as_str());
    }
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
        facts.app_mesh_resource.is_none()
            && !facts.arguments.is_empty()
            && !facts.threads.is_empty()
            && !facts.ancestors.is_empty(),
        "{facts:?}"
    );
}

#[test]
fn what_app_mesh_has_told_its_proxy_is_in_the_environment() {
    // One that says when it runs: a process that is just being started shows no environment yet.
    let mut told = Command::new("sh")
        .args(["-c", "echo; read -r _"])
        .env("APPMESH_VIRTUAL_NODE_NAME", "mesh/shop/virtualNode/cart")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    told.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    let facts = Facts::of(told.id(), "envoy", 1);
    told.kill().unwrap();
    told.wait().unwrap();
    assert_eq!(found(&facts), (Some(Kind::Envoy), Some(Mesh::AppMesh), Some(Role::Sidecar)));
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

#[test]
fn control_planes_by_the_labels_of_their_charts() {
    let of = |labels: &[(&'static str, &str)]| {
        control_plane(&labels.iter().map(|&(name, value)| (name, value.to_owned())).collect())
    };
    for (labels, want) in [
        (&[("app", "istiod"), ("istio", "pilot")][..], Some(Mesh::Istio)),
        (&[("app", "istio-ingressgateway"), ("istio", "ingressgateway")], None),
        (&[("linkerd.io/control-plane-component", "destination")], Some(Mesh::Linkerd)),
        (&[("app", "consul"), ("component", "server")], Some(Mesh::Consul)),
        (&[("app", "consul"), ("component", "connect-injector")], Some(Mesh::Consul)),
        (&[("app", "consul"), ("component", "mesh-gateway")], None),
        (&[("app", "shop"), ("component", "server")], None),
        (&[("app", "kuma-control-plane")], Some(Mesh::Kuma)),
        (&[("app", "kuma-ingress")], None),
        (&[("app", "kong-mesh-control-plane"), ("helm.sh/chart", "kuma-2.9.0")], Some(Mesh::Kuma)),
        (&[("app", "kong-mesh-ingress"), ("helm.sh/chart", "kuma-2.9.0")], None),
        (&[("app", "shop-control-plane"), ("helm.sh/chart", "kuma-shop-1.0.0")], None),
        (&[("app", "shop-control-plane")], None),
        (&[("app", "nsmgr")], Some(Mesh::NetworkServiceMesh)),
        (&[("app", "nsmgr-proxy")], Some(Mesh::NetworkServiceMesh)),
        (&[("app", "registry")], None),
        (
            &[("app.kubernetes.io/part-of", "appmesh"), ("control-plane", "appmesh-controller")],
            Some(Mesh::AppMesh),
        ),
        (&[("app.kubernetes.io/part-of", "appmesh")], None),
        (&[("control-plane", "controller-manager")], None),
        (&[("io.cilium/app", "operator")], Some(Mesh::CiliumServiceMesh)),
        (&[("app", "osm-controller")], Some(Mesh::OpenServiceMesh)),
        (&[("app", "osm-injector")], Some(Mesh::OpenServiceMesh)),
        (&[("app", "osm-bootstrap")], Some(Mesh::OpenServiceMesh)),
        (&[("app", "maesh"), ("component", "controller")], Some(Mesh::TraefikMesh)),
        (&[("app", "maesh"), ("component", "maesh-mesh")], None),
        (&[("app", "shop"), ("component", "controller")], None),
        (&[], None),
    ] {
        assert_eq!(of(labels), want, "{labels:?}");
        assert!(labels.iter().all(|(name, _)| TELLING_LABELS.contains(name)), "{labels:?} are not kept");
    }
}
