//! Which web pages may connect: the `Origin` header against the allow-list.

/// Whether a request with this `Origin` header (none when it had none) is allowed by `patterns`.
///
/// An empty list allows every origin. A request without the header comes from no browser and is allowed: the list
/// protects people whose browser would send their cookie along, not the hub from programs, which can claim any origin.
/// `https://*.example.com` stands for every host below `example.com`, not for `example.com` itself.
pub fn origin_allowed(patterns: &[String], origin: Option<&str>) -> bool {
    let Some(origin) = origin else { return true };
    if patterns.is_empty() {
        return true;
    }
    let origin = without_default_port(origin);
    patterns.iter().any(|pattern| {
        let pattern = without_default_port(pattern);
        if pattern == "*" || pattern.eq_ignore_ascii_case(origin) {
            return true;
        }
        match pattern.split_once("://*.") {
            Some((scheme, domain)) => is_below(origin, scheme, domain),
            None => false,
        }
    })
}

fn is_below(origin: &str, scheme: &str, domain: &str) -> bool {
    let Some((origin_scheme, host)) = origin.split_once("://") else { return false };
    let Some(split) = host.len().checked_sub(domain.len()) else { return false };
    let (Some(sub), Some(end)) = (host.get(..split), host.get(split..)) else { return false };
    // What stands before the domain must be labels of a host: no port, path or user part may hide in it.
    let labels = sub.strip_suffix('.').is_some_and(|sub| {
        !sub.is_empty() && sub.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b) || !b.is_ascii())
    });
    origin_scheme.eq_ignore_ascii_case(scheme) && end.eq_ignore_ascii_case(domain) && labels
}

/// Browsers leave the default port out; people may write it.
fn without_default_port(origin: &str) -> &str {
    let stripped = match origin.split_once("://") {
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("https") => origin.strip_suffix(":443"),
        Some((scheme, _)) if scheme.eq_ignore_ascii_case("http") => origin.strip_suffix(":80"),
        _ => None,
    };
    stripped.unwrap_or(origin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(pattern: &str, origin: &str) -> bool {
        origin_allowed(&[pattern.to_owned()], Some(origin))
    }

    #[test]
    fn an_empty_list_and_a_star_allow_every_origin() {
        assert!(origin_allowed(&[], Some("https://evil.example")));
        assert!(allowed("*", "https://evil.example"));
        assert!(allowed("*", "null"));
    }

    #[test]
    fn programs_without_an_origin_are_allowed() {
        assert!(origin_allowed(&["https://app.example.com".to_owned()], None));
    }

    #[test]
    fn origins_are_compared_whole_and_without_regard_to_case() {
        assert!(allowed("https://app.example.com", "https://app.example.com"));
        assert!(allowed("https://APP.example.com:443", "HTTPS://app.example.com"));
        assert!(allowed("http://localhost:3000", "http://localhost:3000"));
        for other in
            ["http://app.example.com", "https://app.example.com:8443", "https://app.example.com.evil.net", "null", ""]
        {
            assert!(!allowed("https://app.example.com", other), "{other}");
        }
    }

    #[test]
    fn a_wildcard_covers_hosts_below_a_domain_only() {
        assert!(allowed("https://*.example.com", "https://app.example.com"));
        assert!(allowed("https://*.example.com", "https://a.b.example.com"));
        assert!(allowed("https://*.example.com:8443", "https://app.example.com:8443"));
        for other in [
            "https://example.com",
            "https://.example.com",
            "https://notexample.com",
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://evil.net/.example.com",
            "https://evil.net:80@x.example.com",
            "https://evil.net#.example.com",
        ] {
            assert!(!allowed("https://*.example.com", other), "{other}");
        }
    }
}
