//! The host names under which clients reach a service.
use crate::names::bracketed;
use crate::view::ProxyView;
use crate::world::services::Service;

/// Every `Host` that means the service to a proxy: its full name (with a final dot too), the short forms that its
/// namespace allows, its aliases and its addresses. Second: those of them that are abbreviations.
pub(crate) fn of_service(service: &Service, view: &ProxyView) -> (Vec<String>, Vec<String>) {
    let mut domains = Vec::new();
    let mut short = Vec::new();
    for host in std::iter::once(&service.host).chain(&service.aliases) {
        let forms = alternatives(host, &view.dns_domain);
        domains.push(bracketed(host));
        domains.extend(forms.iter().cloned());
        short.extend(forms);
    }
    if service.is_headless() {
        // Each pod has a name below the service's.
        let below: Vec<String> = domains.iter().map(|domain| format!("*.{domain}")).collect();
        domains.extend(below);
    }
    domains.extend(service.addresses.iter().filter(|address| !address.contains('/')).map(|address| bracketed(address)));
    (domains, short)
}

/// `a.ns.svc.cluster.local` is also `a`, `a.ns` and `a.ns.svc` to clients of `ns`, and the latter two to any other.
pub(crate) fn alternatives(host: &str, dns_domain: &str) -> Vec<String> {
    let mut forms = Vec::new();
    if host.parse::<std::net::IpAddr>().is_err() {
        forms.push(format!("{host}."));
    }
    // The proxy's domain is `ns.svc.cluster.local`; hosts of another suffix must not be shortened, or they could
    // take the short name of a cluster service.
    let Some((namespace, suffix)) = dns_domain.split_once(".svc.") else { return forms };
    let Some((qualified, _)) = host.strip_suffix(suffix).and_then(|rest| rest.strip_suffix(".svc.")).map(|rest| (rest, ())) else {
        return forms;
    };
    let Some((name, own_namespace)) = qualified.split_once('.') else { return forms };
    if own_namespace == namespace {
        forms.extend([name.to_owned(), format!("{qualified}.svc"), qualified.to_owned()]);
    } else {
        forms.extend([qualified.to_owned(), format!("{qualified}.svc")]);
    }
    forms
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_forms_depend_on_the_clients_namespace() {
        let host = "reviews.books.svc.cluster.local";
        assert_eq!(
            alternatives(host, "books.svc.cluster.local"),
            ["reviews.books.svc.cluster.local.", "reviews", "reviews.books.svc", "reviews.books"]
        );
        assert_eq!(
            alternatives(host, "other.svc.cluster.local"),
            ["reviews.books.svc.cluster.local.", "reviews.books", "reviews.books.svc"]
        );
        assert_eq!(alternatives("example.com", "books.svc.cluster.local"), ["example.com."]);
        assert!(alternatives("10.0.0.1", "books.svc.cluster.local").is_empty());
    }
}
