//! Users with few rights, and connections over TLS.

use ringhub::broker::StartError;

use super::support::{Node, Redis, config, free_port, program};

fn key(name: &str) -> String {
    format!("{}/tests/keys/{name}", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn a_user_needs_the_commands_and_keys_of_the_broker_and_no_others() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let connection = ["+hello", "+auth", "+ping", "+subscribe", "+unsubscribe", "+publish", "+eval", "+evalsha"];
    let scripts = ["+get", "+set", "+del", "+hmget", "+hset", "+pexpire", "+xadd", "+xrange"];
    let keys = ["reset", "on", ">open sesame", "resetchannels", "~ringhub:*", "&ringhub:*"];
    let words = ["ACL", "SETUSER", "hub"];
    redis.command::<String>(&[&words[..], &keys[..], &connection[..], &scripts[..]].concat());
    let more = "username = \"hub\"\npassword = \"open sesame\"";
    let mut node = Node::with(&config(&redis.url(), more)).unwrap_or_else(|error| panic!("{error}"));
    node.follow("doc:1");
    node.publish("doc:1", 0..3).expect("published");
    node.publish_with_key("doc:1", 3, "k").expect("published");
    node.until_seq("doc:1", 4);
    assert_eq!(node.clear("doc:1"), Ok(4));

    // Other keys than these are not its own, which is told at the start.
    match Node::with(&config(&redis.url(), &format!("{more}\nprefix = \"app\""))) {
        Ok(_) => panic!("it starts"),
        Err(error) => assert!(error.to_string().contains("give the user the commands and keys"), "{error}"),
    }
}

#[test]
fn a_user_that_loses_its_rights_is_refused_until_it_has_them_again() {
    let Some(program) = program() else { return };
    let redis = Redis::start(&program, &[]);
    let allow = || redis.command::<String>(&["ACL", "SETUSER", "hub", "reset", "on", ">a", "~*", "&*", "+@all"]);
    allow();
    let mut node = Node::with(&config(&redis.url(), "username = \"hub\"\npassword = \"a\""))
        .unwrap_or_else(|error| panic!("{error}"));
    node.follow("doc:1");
    redis.command::<i64>(&["ACL", "DELUSER", "hub"]);
    node.until("it is noticed", |node| node.figures.servers_up.value() == 0);
    node.publish("doc:1", [1]).expect_err("refused");
    allow();
    node.until("it is let in", |node| node.figures.servers_up.value() == 1);
    node.publish("doc:1", [2]).expect("published");
    node.until_seq("doc:1", 1);
}

#[test]
fn a_server_that_speaks_tls_is_trusted_by_its_authority_only() {
    let Some(program) = program() else { return };
    let port = free_port();
    let (tls, certificate, private) = (port.to_string(), key("server.cert.pem"), key("server.private.pem"));
    let redis = Redis::start(
        &program,
        &[
            "--tls-port",
            &tls,
            "--tls-cert-file",
            &certificate,
            "--tls-key-file",
            &private,
            "--tls-ca-cert-file",
            &key("ca.cert.pem"),
            "--tls-auth-clients",
            "no",
        ],
    );
    assert_ne!(redis.port, port);
    let url = format!("rediss://localhost:{port}");
    let authority = format!("ca_file = \"{}\"", key("ca.cert.pem"));
    let mut node = Node::with(&config(&url, &authority)).unwrap_or_else(|error| panic!("{error}"));
    node.follow("doc:1");
    node.publish("doc:1", [1]).expect("published");
    node.until_seq("doc:1", 1);

    let error = Node::with(&config(&url, "")).err().expect("it is not trusted");
    assert!(matches!(error, StartError::Refused { .. }), "{error:?}");
    assert!(error.to_string().contains("broker.redis.ca_file"), "{error}");
    let no_certificate = format!("ca_file = \"{}\"", key("rsa.public.pem"));
    let error = Node::with(&config(&url, &no_certificate)).err().expect("there is nothing to trust");
    assert!(matches!(error, StartError::CaFile(_)) && error.to_string().contains("no certificate"), "{error}");
}
