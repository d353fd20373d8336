//! What one result is about, in labels.

use std::collections::BTreeMap;

use crate::document::{Document, Hop, ProxyMatching};
use crate::hop::Segment;

/// One result's hop, with its proxy.
pub(super) struct Scope<'a> {
    pub(super) hop: &'a Hop,
    proxy: Option<&'a ProxyMatching>,
}

/// Every scope of a document, in its order.
pub(super) fn all(document: &Document) -> impl Iterator<Item = Scope<'_>> {
    document.hops.iter().map(|hop| {
        let proxy = document.proxies.iter().find(|proxy| proxy.pid == hop.pid && proxy.proxy == hop.proxy);
        Scope { hop, proxy }
    })
}

impl Scope<'_> {
    /// Unique on a node within a run.
    pub(super) fn name(&self) -> String {
        let Hop { proxy, pid, direction, segment, .. } = self.hop;
        format!("proxy-hop/{proxy}/{pid}/{}/{}", direction.as_str(), segment.as_str())
    }

    /// The classes are the proxy's over both directions. They and the histogram sit on the `hop` segment only.
    pub(super) fn labels(&self, document: &Document) -> BTreeMap<String, String> {
        let hop = self.hop;
        let mut labels = vec![
            ("scope", "proxy-hop".to_owned()),
            ("node", document.node.identity.name.clone()),
            ("proxy", hop.proxy.clone()),
            ("pid", hop.pid.to_string()),
            ("direction", hop.direction.as_str().to_owned()),
            ("segment", hop.segment.as_str().to_owned()),
            ("count", hop.count.to_string()),
            ("p999-ms", (hop.p999 as f64 / super::NS_PER_MS).to_string()),
        ];
        labels
            .extend(self.proxy.and_then(|proxy| proxy.pod.as_ref()).into_iter().flat_map(super::pod_labels));
        if !document.warnings.is_empty() {
            labels.push(("warnings", document.warnings.join("; ")));
        }
        if hop.segment == Segment::Hop {
            labels.push(("hdr", hop.hdr.clone()));
            labels.push(("hdr-unit", hop.unit.to_owned()));
            if let Some(matching) = self.proxy.map(|proxy| &proxy.matching) {
                labels.extend([
                    ("messages-seen", matching.seen.to_string()),
                    ("messages-exact", matching.exact.to_string()),
                    ("messages-ambiguous", matching.ambiguous.to_string()),
                    ("messages-unmatched", matching.unmatched.to_string()),
                    ("messages-lost", matching.lost_total().to_string()),
                    ("messages-in-flight", matching.in_flight.to_string()),
                    ("messages-local", matching.local.to_string()),
                ]);
            }
        }
        super::prefixed(labels)
    }
}
