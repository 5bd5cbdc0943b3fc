//! `ringhub token`: signs a token with the configured secret.

use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;

use super::sources::SourceArgs;
use crate::auth::{Claims, Verifier, mint};
use crate::config::Config;

/// Flags of `ringhub token`.
#[derive(Args, Clone, Debug)]
pub struct TokenArgs {
    /// Where the configuration comes from; the secret is `auth.secret`, or RINGHUB_AUTH_SECRET in the environment.
    #[command(flatten)]
    pub sources: SourceArgs,
    /// User id.
    #[arg(long, value_name = "USER")]
    pub sub: String,
    /// Role; may be repeated.
    #[arg(long, value_name = "NAME")]
    pub role: Vec<String>,
    /// Permission, such as 'project:*:read'; may be repeated.
    #[arg(long, value_name = "PERMISSION")]
    pub permission: Vec<String>,
    /// How long the token holds: a number with s, m, h or d.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = seconds)]
    pub ttl: u64,
    /// A name for people to read.
    #[arg(long)]
    pub name: Option<String>,
    /// Sign with the secret of this kid instead of the first one.
    #[arg(long)]
    pub kid: Option<String>,
    /// Audience; the first of `auth.audience` when not given.
    #[arg(long)]
    pub aud: Option<String>,
    /// Issuer; the first of `auth.issuer` when not given.
    #[arg(long)]
    pub iss: Option<String>,
}

/// Prints the token.
pub fn run(args: TokenArgs) -> ExitCode {
    let config = match args.sources.load() {
        Ok(config) => config,
        Err(error) => return super::fail(error),
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    match token(&args, &config, now) {
        Ok(token) => super::print(&format!("{token}\n")),
        Err(error) => super::fail(error),
    }
}

fn token(args: &TokenArgs, config: &Config, now: u64) -> Result<String, String> {
    let secret = match &args.kid {
        None => config.auth.secret.first().ok_or_else(|| {
            "auth.secret is not set: give the hub's, with --config FILE or RINGHUB_AUTH_SECRET in the environment. \
             A hub without one draws a secret for its run and prints a token when it starts."
                .to_owned()
        })?,
        Some(kid) => {
            let with_kid = config.auth.secret.iter().find(|secret| secret.kid.as_ref() == Some(kid));
            with_kid.ok_or_else(|| format!("auth.secret has no secret with kid {kid:?}"))?
        }
    };
    for role in args.role.iter().filter(|role| !config.roles.contains_key(*role)) {
        let known = config.roles.keys().cloned().collect::<Vec<_>>().join(", ");
        eprintln!("ringhub: the configuration gives role {role:?} no permissions; it has {known}");
    }
    let claims = Claims {
        sub: args.sub.clone(),
        name: args.name.clone(),
        roles: args.role.clone(),
        permissions: args.permission.clone(),
        iat: Some(now),
        exp: Some(now.saturating_add(args.ttl)),
        nbf: None,
        iss: args.iss.clone().or_else(|| config.auth.issuer.first().cloned()),
        aud: args.aud.clone().or_else(|| config.auth.audience.first().cloned()),
    };
    let token = mint(secret, config.auth.algorithm, &claims).map_err(|error| error.to_string())?;
    // What the hub would refuse is not handed out.
    let verifier = Verifier::new(config).map_err(|error| error.to_string())?;
    verifier.verify(&token, now).map_err(|error| format!("the hub would refuse this token: {error}"))?;
    Ok(token)
}

/// Reads `90`, `90s`, `15m`, `1h` or `7d`.
fn seconds(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.as_bytes().last() {
        Some(b's') => (text.len() - 1, 1),
        Some(b'm') => (text.len() - 1, 60),
        Some(b'h') => (text.len() - 1, 3600),
        Some(b'd') => (text.len() - 1, 86_400),
        _ => (text.len(), 1),
    };
    let number: Option<u64> = text.get(..digits).and_then(|digits| digits.parse().ok());
    let seconds = number.and_then(|number| number.checked_mul(factor)).filter(|&seconds| seconds > 0);
    seconds.ok_or_else(|| "expected a number with s, m, h or d, such as 15m".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;

    fn args(role: &str) -> TokenArgs {
        TokenArgs {
            sources: SourceArgs::default(),
            sub: "alice".to_owned(),
            role: vec![role.to_owned()],
            permission: vec!["project:42:write".to_owned()],
            ttl: 60,
            name: None,
            kid: None,
            aud: None,
            iss: None,
        }
    }

    fn config(set: &[&str]) -> Config {
        let set = set.iter().map(|text| text.to_string()).collect();
        Config::load(&Sources { set, ..Sources::default() }).expect("valid")
    }

    #[test]
    fn a_minted_token_is_accepted_by_the_hub_it_was_minted_for() {
        let config = config(&["auth.secret=top", "auth.audience=hub", "auth.issuer=us", "auth.algorithm=HS512"]);
        let token = token(&args("operator"), &config, 1000).expect("token");
        let identity = Verifier::new(&config).expect("verifier").verify(&token, 1000).expect("identity");
        assert_eq!(identity.user_id, "alice");
        assert_eq!(identity.expires_at, Some(1060));
        assert!(identity.permissions.may_connect());
        assert!(identity.permissions.allows("project:42:write"));
    }

    #[test]
    fn without_a_secret_the_error_says_where_one_comes_from() {
        let error = token(&args("admin"), &Config::default(), 0).expect_err("no secret");
        assert!(error.contains("RINGHUB_AUTH_SECRET"), "{error}");
    }

    #[test]
    fn the_secret_can_be_chosen_by_its_kid() {
        let config = config(&[r#"auth.secret=[{kid="old", secret="a"}, {kid="new", secret="b"}]"#]);
        let mut args = args("admin");
        args.kid = Some("new".to_owned());
        let token_new = token(&args, &config, 0).expect("token");
        assert_eq!(jsonwebtoken::decode_header(&token_new).expect("header").kid.as_deref(), Some("new"));
        args.kid = Some("other".to_owned());
        assert!(token(&args, &config, 0).is_err());
    }

    #[test]
    fn times_are_read_with_their_unit() {
        assert_eq!(seconds("90"), Ok(90));
        assert_eq!(seconds("15m"), Ok(900));
        assert_eq!(seconds("1h"), Ok(3600));
        assert_eq!(seconds("7d"), Ok(604_800));
        for wrong in ["", "h", "0", "-1s", "1w", "99999999999999999999d", "1ä"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
