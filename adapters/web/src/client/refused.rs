//! What an answer that is not the hoped-for one means.
//!
//! A proxy in between answers with the same statuses as the server. So an answer counts as the server's own word only if it
//! says so in the server's way, with a code. Of a bare status only that is believed which asks to wait, or for credentials.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode, header};
use lastmile::ports::ConnectError;
use lastmile::session::Code;

/// The longest wait that a server's answer can cost.
const MAX_WAIT: Duration = Duration::from_secs(3600);

/// The error for an answer.
pub(super) fn refused(what: &str, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> ConnectError {
    let said = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let number = |field: &str| said.get(field).and_then(serde_json::Value::as_u64);
    let code = number("code").and_then(|code| u16::try_from(code).ok()).and_then(Code::from_number);
    let code = code.unwrap_or(match status {
        StatusCode::UNAUTHORIZED => Code::CredentialsRefused,
        StatusCode::TOO_MANY_REQUESTS => Code::RateLimited,
        StatusCode::SERVICE_UNAVAILABLE => Code::Overloaded,
        _ => Code::TransportLost,
    });
    let retry_after = number("retry_after_ms").map(Duration::from_millis).or_else(|| after(headers));
    ConnectError {
        code,
        retry_after: retry_after.map(|wait| wait.min(MAX_WAIT)),
        text: format!("{what} was answered with {status}"),
    }
}

/// `Retry-After`: seconds, or a date, which is counted from the answer's own.
fn after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let wanted = text(header::RETRY_AFTER)?.trim();
    if let Ok(seconds) = wanted.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = |text: &str| httpdate::parse_http_date(text).ok();
    let (now, then): (SystemTime, SystemTime) = (date(text(header::DATE)?)?, date(wanted)?);
    Some(then.duration_since(now).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(status: u16, headers: &[(&'static str, &'static str)], body: &str) -> (Code, Option<u64>) {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        let error = refused("a request", StatusCode::from_u16(status).unwrap(), &headers, body.as_bytes());
        (error.code, error.retry_after.map(|wait| u64::try_from(wait.as_millis()).unwrap()))
    }

    #[test]
    fn the_servers_own_word_counts_before_the_status() {
        let body = r#"{"code":4309,"text":"pages of this origin may not connect here"}"#;
        assert_eq!(error(403, &[], body), (Code::Forbidden, None));
        let body = r#"{"code":4100,"retry_after_ms":1500}"#;
        assert_eq!(error(503, &[("retry-after", "2")], body), (Code::Overloaded, Some(1500)));
    }

    #[test]
    fn of_a_bare_status_little_is_believed() {
        assert_eq!(error(403, &[], "<html>blocked by policy</html>"), (Code::TransportLost, None));
        assert_eq!(error(404, &[], ""), (Code::TransportLost, None));
        assert_eq!(error(407, &[], ""), (Code::TransportLost, None));
        assert_eq!(error(401, &[], ""), (Code::CredentialsRefused, None));
        assert_eq!(error(429, &[("retry-after", " 7 ")], ""), (Code::RateLimited, Some(7000)));
        assert_eq!(error(503, &[], r#"{"code":99999}"#), (Code::Overloaded, None));
        assert_eq!(error(503, &[], r#"{"code":"4100"}"#), (Code::Overloaded, None));
    }

    #[test]
    fn a_date_to_come_back_at_is_counted_from_the_answers_own() {
        let date = ("date", "Wed, 21 Oct 2015 07:28:00 GMT");
        assert_eq!(
            error(503, &[date, ("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT")], ""),
            (Code::Overloaded, Some(30_000))
        );
        assert_eq!(
            error(503, &[date, ("retry-after", "Wed, 21 Oct 2015 07:00:00 GMT")], ""),
            (Code::Overloaded, Some(0))
        );
        assert_eq!(error(503, &[("retry-after", "Wed, 21 Oct 2015 07:28:30 GMT")], "").1, None);
        assert_eq!(error(503, &[("retry-after", "99999999999")], "").1, Some(3_600_000), "at most an hour");
    }
}
