//! What is allowed but unwise: configurations that are valid and still deserve a word.

use jsonwebtoken::Algorithm;

use super::Config;
use super::finding::Finding;
use super::net::TrustedProxies;

/// Every unwise thing in `config`.
pub fn advice(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(cookie_without_origins(config));
    findings.extend(short_secrets(config));
    findings.extend(no_keys(config));
    findings.extend(exposed_hooks(config));
    findings.extend(unsigned_hooks(config));
    findings
}

/// Browsers send cookies along from every site, so that any page could open a socket in its visitor's name.
fn cookie_without_origins(config: &Config) -> Option<Finding> {
    let open = config.auth.origins.is_empty() || config.auth.origins.iter().any(|pattern| pattern == "*");
    (config.auth.enabled && config.auth.cookie.is_some() && open).then(|| {
        Finding::warn(
            "origins",
            "auth.cookie is set, and auth.origins allows every site",
            "any web page can connect in the name of a visitor who has the cookie",
            "auth.origins = [\"https://your.site\"]",
        )
    })
}

/// RFC 7518 §3.2: a key of at least the size of the hash.
fn short_secrets(config: &Config) -> Option<Finding> {
    let bytes_min = match config.auth.algorithm {
        Algorithm::HS384 => 48,
        Algorithm::HS512 => 64,
        _ => 32,
    };
    let short = config.auth.secret.iter().any(|secret| secret.secret.len() < bytes_min);
    (config.auth.enabled && short).then(|| {
        Finding::warn(
            "secret",
            format!("auth.secret is shorter than {bytes_min} bytes"),
            "whoever has one token can try secrets until one fits",
            format!("openssl rand -hex {}", bytes_min / 2),
        )
    })
}

fn no_keys(config: &Config) -> Option<Finding> {
    let auth = &config.auth;
    let none = auth.secret.is_empty() && auth.keys.is_empty() && auth.jwks.is_none();
    (auth.enabled && none).then(|| {
        Finding::warn(
            "secret",
            "no secret and no key is configured",
            "a secret is drawn for each run, so that tokens end with it",
            "auth.secret = \"…\", with a secret from: openssl rand -hex 32",
        )
    })
}

fn exposed_hooks(config: &Config) -> Option<Finding> {
    let hooks = [("hooks.url", &config.hooks.url), ("hooks.connect_url", &config.hooks.connect_url)];
    let (key, _) = hooks.into_iter().find(|(_, url)| url.as_ref().is_some_and(|url| url.is_exposed()))?;
    Some(Finding::warn(
        "hooks",
        format!("{key} is plain HTTP beyond a private network"),
        "whoever is on the way reads who connects and can answer in the backend's place",
        format!("{key} = \"https://…\""),
    ))
}

/// A backend could not tell the hub's calls from anybody else's.
fn unsigned_hooks(config: &Config) -> Option<Finding> {
    let hooks = &config.hooks;
    (hooks.secret.is_empty() && (hooks.url.is_some() || hooks.connect_url.is_some())).then(|| {
        Finding::warn(
            "hooks",
            "hooks.secret is not set",
            "the backend can't tell the hub's calls from those of others",
            "hooks.secret = \"whsec_…\", with a secret from: openssl rand -base64 32",
        )
    })
}

/// Whether clients behind a proxy would all count as the proxy's address; only `doctor` says so, since the hub can't
/// know of a proxy that forwards nothing.
pub fn proxy_path(config: &Config) -> Finding {
    let limits = &config.limits;
    let check = "proxy path";
    if config.listen.trusted_proxies != TrustedProxies::default() {
        Finding::ok(check, "client addresses are taken from the trusted proxies")
    } else if limits.connections_per_address_max == 0 && limits.connects_per_s == 0 {
        Finding::ok(check, "no limit looks at client addresses")
    } else {
        Finding::warn(
            check,
            "listen.trusted_proxies is empty",
            format!(
                "behind a reverse proxy all clients count as one address: {} connections, {} connects per second",
                limits.connections_per_address_max, limits.connects_per_s
            ),
            "listen.trusted_proxies = [\"127.0.0.1\", \"unix\"], with the proxy's addresses; nothing to do without one",
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::Sources;
    use super::*;

    fn checks(set: &[&str]) -> Vec<&'static str> {
        let set = set.iter().map(|text| text.to_string()).collect();
        let config = Config::load(&Sources { set, ..Sources::default() }).expect("valid");
        advice(&config).into_iter().map(|finding| finding.check).collect()
    }

    const SECRET: &str = "auth.secret=0123456789abcdef0123456789abcdef";

    #[test]
    fn a_good_configuration_needs_no_advice() {
        assert!(checks(&[SECRET]).is_empty());
        assert!(checks(&[SECRET, "auth.cookie=token", "auth.origins=https://app.example.com"]).is_empty());
        assert!(checks(&["auth.enabled=false"]).is_empty());
    }

    #[test]
    fn a_cookie_that_every_site_may_use_is_pointed_out() {
        assert_eq!(checks(&[SECRET, "auth.cookie=token"]), ["origins"]);
        assert_eq!(checks(&[SECRET, "auth.cookie=token", "auth.origins=*"]), ["origins"]);
    }

    #[test]
    fn short_and_missing_secrets_are_pointed_out() {
        assert_eq!(checks(&["auth.secret=short"]), ["secret"]);
        assert_eq!(checks(&[SECRET, "auth.algorithm=HS512"]), ["secret"]);
        assert_eq!(checks(&[]), ["secret"]);
    }

    #[test]
    fn hooks_are_to_be_signed_and_kept_private() {
        assert_eq!(checks(&[SECRET, "hooks.url=http://127.0.0.1:9000/"]), ["hooks"]);
        assert_eq!(checks(&[SECRET, "hooks.url=http://example.com/", "hooks.secret=x"]), ["hooks"]);
        assert!(checks(&[SECRET, "hooks.connect_url=https://example.com/", "hooks.secret=x"]).is_empty());
    }

    #[test]
    fn a_proxy_is_asked_about_only_where_addresses_count() {
        let mut config = Config::default();
        assert!(!proxy_path(&config).fix.is_empty());
        config.listen.trusted_proxies.unix = true;
        assert!(proxy_path(&config).fix.is_empty());
    }
}
