//! Signatures as <https://www.standardwebhooks.com> has them, for which every language has a library:
//!
//! ```text
//!     webhook-id:         msg_…                                   the same in every attempt
//!     webhook-timestamp:  1700000000                              of the attempt, in seconds
//!     webhook-signature:  v1,BASE64 v1,BASE64                     one for each secret
//!
//!     HMAC-SHA256(secret, "{id}.{timestamp}.{body}")
//! ```

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::config::Secret;

/// What marks a secret that is given in base64.
const PREFIX: &str = "whsec_";

/// The headers of a signed call; without a secret there is no signature.
pub(super) fn headers(secrets: &[Secret], id: &str, unix_s: u64, body: &[u8]) -> Vec<(&'static str, String)> {
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("webhook-id", id.to_owned()),
        ("webhook-timestamp", unix_s.to_string()),
    ];
    if !secrets.is_empty() {
        let signatures: Vec<String> = secrets.iter().map(|secret| sign(&secret.secret, id, unix_s, body)).collect();
        headers.push(("webhook-signature", signatures.join(" ")));
    }
    headers
}

fn sign(secret: &str, id: &str, unix_s: u64, body: &[u8]) -> String {
    // What is no base64 after the mark is a secret that happens to begin with it.
    let decoded = secret.strip_prefix(PREFIX).and_then(|text| STANDARD.decode(text).ok());
    let key = hmac::Key::new(hmac::HMAC_SHA256, decoded.as_deref().unwrap_or(secret.as_bytes()));
    let mut context = hmac::Context::with_key(&key);
    context.update(id.as_bytes());
    context.update(b".");
    context.update(unix_s.to_string().as_bytes());
    context.update(b".");
    context.update(body);
    format!("v1,{}", STANDARD.encode(context.sign()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_is_that_of_standard_webhooks() {
        // The example of the specification's reference libraries.
        let secret = Secret { kid: None, secret: "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw".to_owned() };
        let headers = headers(&[secret], "msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, b"{\"test\": 2432232314}");
        assert_eq!(headers[3], ("webhook-signature", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=".to_owned()));
    }

    #[test]
    fn each_secret_has_its_signature_and_none_has_none() {
        let secret = |text: &str| Secret { kid: None, secret: text.to_owned() };
        let both = headers(&[secret("one"), secret("two")], "m", 1, b"x");
        let signatures: Vec<&str> = both[3].1.split(' ').collect();
        assert!(signatures.len() == 2 && signatures[0] != signatures[1]);
        assert_eq!(headers(&[], "m", 1, b"x").len(), 3);
    }
}
