use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use lastmile::DeviceId;
use lastmile::session::frame::Credentials;
use serde_json::json;

use super::*;

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";
const OTHER: &[u8] = b"fedcba9876543210fedcba9876543210";

fn tokens() -> JwtAuthenticator {
    JwtAuthenticator::new("chat", "me", [(None, JwtKey::hmac(SECRET).unwrap())]).unwrap()
}

fn issuer(audience: &str, issuer: &str, secret: &[u8]) -> JwtIssuer {
    JwtIssuer::hmac(audience, issuer, None, secret).unwrap()
}

fn token(claims: &serde_json::Value) -> String {
    ensure_provider();
    let key = EncodingKey::from_secret(SECRET).unwrap();
    jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS256), claims, &key).unwrap()
}

fn good() -> serde_json::Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({"sub": "alice", "aud": "chat", "iss": "me", "exp": now + 600})
}

fn with(change: impl FnOnce(&mut serde_json::Value)) -> String {
    let mut claims = good();
    change(&mut claims);
    token(&claims)
}

fn refusal(token: &str) -> String {
    let denied = tokens().check(token.as_bytes()).unwrap_err();
    assert_eq!(denied.code, Code::CredentialsRefused);
    denied.text
}

fn expired(token: &str) -> String {
    let denied = tokens().check(token.as_bytes()).unwrap_err();
    assert_eq!(denied.code, Code::SessionExpired, "which costs nobody a penalty");
    denied.text
}

#[test]
fn a_good_token_lets_its_subject_in_until_it_expires() {
    let token = issuer("chat", "me", SECRET).issue("alice", Duration::from_secs(600)).unwrap();
    let identity = tokens().check(token.as_bytes()).unwrap();
    assert_eq!(identity.user, UserId::new("alice").unwrap());
    let left = identity.expires_in.unwrap().as_secs();
    assert!((628..=630).contains(&left), "ten minutes and the leeway: {left}");
}

#[test]
fn each_claim_is_held_to_and_none_may_miss() {
    let now = jsonwebtoken::get_current_timestamp();
    assert!(tokens().check(with(|_| ()).as_bytes()).is_ok());
    assert_eq!(expired(&with(|c| c["exp"] = json!(now - 31))), "an expired token");
    assert_eq!(expired(&with(|c| c["exp"] = json!(now - 30))), "an expired token", "at its very end");
    let guessed = issuer("chat", "me", OTHER).issue("alice", Duration::ZERO).unwrap();
    assert_eq!(refusal(&guessed), "a token with a wrong signature", "whatever time it says");
    assert!(tokens().check(with(|c| c["exp"] = json!(now - 25)).as_bytes()).is_ok(), "within the leeway");
    assert_eq!(refusal(&with(|c| c["aud"] = json!("mail"))), "a token for another audience");
    assert!(tokens().check(with(|c| c["aud"] = json!(["mail", "chat"])).as_bytes()).is_ok());
    assert_eq!(refusal(&with(|c| c["iss"] = json!("you"))), "a token of another issuer");
    assert_eq!(refusal(&with(|c| c["nbf"] = json!(now + 100))), "a token that is not valid yet");
    assert_eq!(refusal(&with(|c| c["sub"] = json!(""))), "a token whose subject is no user");
    for claim in ["sub", "exp", "aud", "iss"] {
        refusal(&with(|c| drop(c.as_object_mut().unwrap().remove(claim))));
        refusal(&with(|c| c[claim] = json!(null)));
        refusal(&with(|c| c[claim] = json!({"a": 1})));
    }
    refusal(&with(|c| c["exp"] = json!("soon")));
    refusal(&with(|c| c["exp"] = json!(-1)));
}

#[test]
fn no_token_says_which_algorithm_it_is_checked_with() {
    let encode = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    for alg in ["none", "None", "NONE", ""] {
        let unsigned = format!("{}.{}.", encode(json!({"alg": alg, "typ": "JWT"})), encode(good()));
        refusal(&unsigned);
    }
    ensure_provider();
    // Signed with the right secret, by another algorithm of the same family.
    let key = EncodingKey::from_secret(SECRET).unwrap();
    let other = jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS512), &good(), &key).unwrap();
    assert_eq!(refusal(&other), "a token signed in another way");
    // A public key is no secret, though everybody knows its bytes.
    let public = rcgen::KeyPair::generate().unwrap().public_key_pem();
    let by_curve =
        JwtAuthenticator::new("chat", "me", [(None, JwtKey::ec_pem(public.as_bytes()).unwrap())]).unwrap();
    let key = EncodingKey::from_secret(public.as_bytes()).unwrap();
    let confused = jsonwebtoken::encode(&Header::new(jsonwebtoken::Algorithm::HS256), &good(), &key).unwrap();
    assert_eq!(by_curve.check(confused.as_bytes()).unwrap_err().text, "a token signed in another way");
}

#[test]
fn a_token_by_a_key_pair_lets_in() {
    ensure_provider();
    let pair = rcgen::KeyPair::generate().unwrap();
    let key = JwtKey::ec_pem(pair.public_key_pem().as_bytes()).unwrap();
    let tokens = JwtAuthenticator::new("chat", "me", [(None, key)]).unwrap();
    let signing = EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap();
    let header = Header::new(jsonwebtoken::Algorithm::ES256);
    let token = jsonwebtoken::encode(&header, &good(), &signing).unwrap();
    assert!(tokens.check(token.as_bytes()).is_ok());
    let other = rcgen::KeyPair::generate().unwrap();
    let signing = EncodingKey::from_ec_pem(other.serialize_pem().as_bytes()).unwrap();
    let token = jsonwebtoken::encode(&header, &good(), &signing).unwrap();
    assert_eq!(tokens.check(token.as_bytes()).unwrap_err().text, "a token with a wrong signature");
}

#[test]
fn damaged_tokens_are_refused_and_none_is_asked_for() {
    let token = with(|_| ());
    for at in 0..token.len() {
        let mut damaged = token.clone().into_bytes();
        damaged[at] = if damaged[at] == b'A' { b'B' } else { b'A' };
        // The last digit of a base64 text has bits that mean nothing.
        if URL_SAFE_NO_PAD.decode(damaged.rsplit(|b| *b == b'.').next().unwrap()).is_ok_and(|sig| {
            let own = URL_SAFE_NO_PAD.decode(token.rsplit('.').next().unwrap()).unwrap();
            sig == own
                && damaged[..token.rfind('.').unwrap()] == token.as_bytes()[..token.rfind('.').unwrap()]
        }) {
            continue;
        }
        assert!(tokens().check(&damaged).is_err(), "{at}");
    }
    for text in ["a", "a.b.c", "..", "....", &"x".repeat(9000), "\u{0}"] {
        assert!(tokens().check(text.as_bytes()).is_err());
    }
    assert_eq!(tokens().check(b"").unwrap_err().code, Code::CredentialsNeeded);
    assert_eq!(
        refusal(&issuer("chat", "me", OTHER).issue("alice", Duration::from_secs(9)).unwrap()),
        "a token with a wrong signature"
    );
}

#[test]
fn keys_are_exchanged_for_all_clones_and_a_token_names_its_own() {
    let tokens = tokens();
    let clone = tokens.clone();
    let old = issuer("chat", "me", SECRET).issue("alice", Duration::from_secs(600)).unwrap();
    let new = JwtIssuer::hmac("chat", "me", Some("2".into()), OTHER).unwrap();
    let new = new.issue("alice", Duration::from_secs(600)).unwrap();
    assert_eq!(clone.check(new.as_bytes()).unwrap_err().text, "a token of an unknown key");
    let both = [(None, JwtKey::hmac(SECRET).unwrap()), (Some("2".into()), JwtKey::hmac(OTHER).unwrap())];
    tokens.set_keys(both).unwrap();
    assert!(clone.check(new.as_bytes()).is_ok() && clone.check(old.as_bytes()).is_ok());
    tokens.set_keys([(Some("2".into()), JwtKey::hmac(OTHER).unwrap())]).unwrap();
    assert!(clone.check(new.as_bytes()).is_ok() && clone.check(old.as_bytes()).is_err());
    let many = (0..65).map(|n| (Some(n.to_string()), JwtKey::hmac(OTHER).unwrap()));
    assert_eq!(tokens.set_keys(many), Err(JwtKeyError::TooMany));
    let twice = [(None, JwtKey::hmac(SECRET).unwrap()), (None, JwtKey::hmac(OTHER).unwrap())];
    assert_eq!(tokens.set_keys(twice), Err(JwtKeyError::Repeated));
    assert!(clone.check(new.as_bytes()).is_ok(), "the keys are as they were");
}

#[tokio::test]
async fn a_claim_to_be_somebody_else_is_refused_and_so_is_a_renewal_by_somebody_else() {
    let token = issuer("chat", "me", SECRET).issue("alice", Duration::from_secs(600)).unwrap();
    let user = |name: &str| UserId::new(name).unwrap();
    let claim = |name: Option<&str>| {
        let credentials = Credentials(token.clone().into());
        Claim::new(name.map(user), DeviceId::new("phone").unwrap(), credentials)
    };
    let tokens = tokens();
    assert_eq!(tokens.authenticate(claim(None)).await.unwrap().user, user("alice"));
    assert!(tokens.authenticate(claim(Some("alice")).renewing(user("alice"))).await.is_ok());
    assert!(tokens.authenticate(claim(Some("bob"))).await.is_err());
    assert!(tokens.authenticate(claim(None).renewing(user("bob"))).await.is_err());
}

#[test]
fn weak_secrets_are_refused_and_nothing_secret_is_shown() {
    assert!(matches!(JwtKey::hmac(&SECRET[1..]), Err(JwtKeyError::TooShort)));
    assert!(JwtIssuer::hmac("chat", "me", None, b"short").is_err());
    assert!(
        JwtKey::ec_pem(b"no key").is_err() && JwtKey::rsa_pem(b"").is_err() && JwtKey::ed_pem(b"x").is_err()
    );
    let shown = format!("{:?} {:?} {:?}", tokens(), JwtKey::hmac(SECRET), issuer("chat", "me", SECRET));
    assert!(!shown.contains("0123456789"), "{shown}");
}
