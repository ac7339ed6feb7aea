//! Which pages may connect.

use axum::response::Response;
use http::uri::Authority;
use http::{HeaderMap, HeaderValue, header};

use crate::config::Origins;

/// Whether a request from there is let in. What names no origin is no page of another site: browsers name it with every
/// WebSocket and with every request across origins.
pub(super) fn is_allowed(origins: &Origins, headers: &HeaderMap, authority: Option<&Authority>) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    if *origins == Origins::Any {
        return true;
    }
    let Ok(origin) = origin.to_str() else { return false };
    let listed = match origins {
        Origins::Also(list) => list.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin)),
        _ => false,
    };
    listed || is_same(origin, headers, authority)
}

/// Whether the page is one of the host that is asked. The scheme is not compared: behind a proxy that ends TLS it is not known.
fn is_same(origin: &str, headers: &HeaderMap, authority: Option<&Authority>) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let Some(host) = host.or_else(|| authority.map(Authority::as_str)) else { return false };
    let Some((scheme, place)) = origin.split_once("://") else { return false };
    let port = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    place.eq_ignore_ascii_case(host.strip_suffix(port).unwrap_or(host))
}

/// Lets a page of another origin that was let in read the answer.
pub(super) fn share(mut response: Response, origin: Option<HeaderValue>) -> Response {
    if let Some(origin) = origin {
        response.headers_mut().insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        response.headers_mut().insert(header::VARY, HeaderValue::from_static("origin"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(origins: &Origins, origin: &str, host: &str) -> bool {
        let mut headers = HeaderMap::new();
        if !origin.is_empty() {
            headers.insert(header::ORIGIN, origin.parse().unwrap());
        }
        headers.insert(header::HOST, host.parse().unwrap());
        is_allowed(origins, &headers, None)
    }

    #[test]
    fn the_own_host_is_let_in_and_no_other() {
        let own = Origins::SameOrigin;
        for (origin, host) in [
            ("https://chat.example", "chat.example"),
            ("https://Chat.example", "chat.Example"),
            ("https://chat.example", "chat.example:443"),
            ("http://127.0.0.1:3000", "127.0.0.1:3000"),
            ("http://[::1]:3000", "[::1]:3000"),
            ("", "chat.example"),
        ] {
            assert!(allowed(&own, origin, host), "{origin} {host}");
        }
        for (origin, host) in [
            ("https://evil.example", "chat.example"),
            ("https://chat.example.evil.example", "chat.example"),
            ("https://chat.example:8443", "chat.example"),
            ("http://127.0.0.1:3001", "127.0.0.1:3000"),
            ("null", "chat.example"),
            ("file://chat.example", "chat.example"),
            ("chat.example", "chat.example"),
        ] {
            assert!(!allowed(&own, origin, host), "{origin} {host}");
        }
    }

    #[test]
    fn listed_ones_are_let_in_too() {
        let also = Origins::Also(vec!["https://app.example".into()]);
        assert!(allowed(&also, "https://app.example", "api.example"));
        assert!(allowed(&also, "https://api.example", "api.example"));
        assert!(!allowed(&also, "http://app.example", "api.example"), "another scheme is another origin");
        assert!(!allowed(&also, "https://app.example:81", "api.example"));
        assert!(allowed(&Origins::Any, "null", "api.example"));
    }
}
