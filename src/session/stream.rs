//! What a request for a stream of server-sent events asks for: its rooms, where it begins in them, and for which page.

use crate::auth::origin_allowed;
use crate::config::Config;
use crate::wire::codes::ErrorCode;
use crate::wire::http::Head;
use crate::wire::native::Since;
use crate::wire::refusal::Refusal;
use crate::wire::sse::{Mark, Reader, parse_cursor};

/// A stream that is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamAsked {
    /// Its rooms, in the order of its cursors, none twice.
    pub rooms: Vec<Box<str>>,
    /// Where it begins.
    pub begins: Begins,
    /// Whether the answer depends on the page that asks.
    pub varies: bool,
    /// The page that may read the answer.
    pub reader: Option<Reader>,
}

/// Where a stream begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Begins {
    /// With what comes.
    Now,
    /// The same way in every room.
    Since(Since),
    /// Where an earlier one ended; one mark for each room.
    After(Vec<Mark>),
    /// Where an earlier one ended, which can't be told: the cursor is not of these rooms, or not the hub's.
    Elsewhere,
}

impl StreamAsked {
    /// Reads a request's query and headers.
    ///
    /// A cursor that can't be understood is no reason to refuse: a browser sends its last one with every attempt, gives up
    /// for good at the first answer other than 200, and could do nothing about it.
    pub fn read(head: &Head<'_>, config: &Config) -> Result<StreamAsked, Refusal> {
        let rooms_max = config.limits.stream_rooms_max.min(config.limits.rooms_max);
        let mut rooms: Vec<Box<str>> = Vec::new();
        for room in head.query_params("room") {
            let room = room?;
            if rooms.iter().any(|known| **known == *room) {
                continue;
            }
            if rooms.len() >= rooms_max {
                let message = format!("a stream has at most {rooms_max} rooms");
                return Err(Refusal::of_command(400, ErrorCode::RoomLimit, message));
            }
            rooms.push(room.into());
        }
        if rooms.is_empty() {
            return Err(Refusal::bad_request("the query has to name a room (?room=…), or several"));
        }
        let begins = match last_event_id(head)? {
            Some(cursor) => parse_cursor(&cursor, rooms.len()).map_or(Begins::Elsewhere, Begins::After),
            None => match head.query_param("since")? {
                Some(since) => Begins::Since(parse_since(&since)?),
                None => Begins::Now,
            },
        };
        Ok(StreamAsked { rooms, begins, varies: !config.cors.origins.is_empty(), reader: reader(head, config) })
    }
}

/// The header that browsers send when they come back, or one of the parameters of those who can't set headers.
fn last_event_id(head: &Head<'_>) -> Result<Option<String>, Refusal> {
    // Not by way of text: whatever stands there, it is a cursor that can't be understood.
    if let Some(cursor) = head.headers.iter().find(|field| field.name.eq_ignore_ascii_case("last-event-id")) {
        let cursor = String::from_utf8_lossy(cursor.value);
        if !cursor.is_empty() {
            return Ok(Some(cursor.into_owned()));
        }
    }
    for name in ["last_event_id", "lastEventId"] {
        if let Some(cursor) = head.query_param(name)?.filter(|cursor| !cursor.is_empty()) {
            return Ok(Some(cursor.into_owned()));
        }
    }
    Ok(None)
}

/// `last:N` or `seconds:N`.
fn parse_since(text: &str) -> Result<Since, Refusal> {
    let bad = || Refusal::bad_request("since has to be last:N or seconds:N");
    let (what, number) = text.split_once(':').ok_or_else(bad)?;
    let is_number = !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit());
    let number = number.parse().ok().filter(|_| is_number).ok_or_else(bad)?;
    match what {
        "last" => Ok(Since::Last(number)),
        "seconds" => Ok(Since::Seconds(number)),
        _ => Err(bad()),
    }
}

/// Who of `cors.origins` asks. Cookies count only for pages that are named there: `*` lets everybody read what needs none.
fn reader(head: &Head<'_>, config: &Config) -> Option<Reader> {
    let origin = head.header("origin")?;
    let origins = &config.cors.origins;
    if origins.is_empty() || !origin_allowed(origins, Some(origin)) {
        return None;
    }
    let named: Vec<String> = origins.iter().filter(|pattern| *pattern != "*").cloned().collect();
    let credentials = !named.is_empty() && origin_allowed(&named, Some(origin));
    Some(Reader { origin: origin.into(), credentials })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::http::parse_head;

    fn read(query: &str, headers: &str, config: &Config) -> Result<StreamAsked, Refusal> {
        let text = format!("GET /events?{query} HTTP/1.1\r\nHost: h\r\n{headers}\r\n");
        StreamAsked::read(&parse_head(text.as_bytes(), 16_384)?.expect("whole"), config)
    }

    #[test]
    fn rooms_come_in_the_order_of_the_request_and_none_twice() {
        let config = Config::default();
        let asked = read("room=project:1&x=y&room=a%3Ab&room=project%3A1&room=global", "", &config).expect("fits");
        assert_eq!(asked.rooms, ["project:1", "a:b", "global"].map(Box::<str>::from));
        assert_eq!((asked.begins, asked.varies, asked.reader), (Begins::Now, false, None));
    }

    #[test]
    fn a_request_without_rooms_or_with_too_many_is_refused() {
        let mut config = Config::default();
        config.limits.stream_rooms_max = 2;
        let code = |query: &str| read(query, "", &config).map_err(|refusal| (refusal.status, refusal.code));
        assert_eq!(code("").expect_err("none"), (400, "bad_request"));
        assert_eq!(code("room=a&room=b&room=c").expect_err("three"), (400, "room_limit"));
        assert_eq!(code("room=%zz").expect_err("not decodable"), (400, "bad_request"));
        assert!(code("room=a&room=b&room=a&room=b").is_ok());
        assert_eq!(code("room=a&since=5").expect_err("no form"), (400, "bad_request"));
        assert_eq!(code("room=a&since=last:+5").expect_err("no number"), (400, "bad_request"));
        assert_eq!(code("room=a&since=last:99999999999999999999").expect_err("too large"), (400, "bad_request"));
    }

    #[test]
    fn a_stream_begins_after_its_last_event_wherever_that_is_said() {
        let config = Config::default();
        let begins = |query: &str, headers: &str| read(query, headers, &config).expect("fits").begins;
        let marks = vec![Mark { epoch: 1, seq: 2 }, Mark { epoch: 64, seq: 0 }];
        let rooms = "room=a&room=b";
        assert_eq!(begins(rooms, "Last-Event-ID: 1~2.10~0\r\n"), Begins::After(marks.clone()));
        assert_eq!(begins("room=a&room=b&last_event_id=1~2.10~0", ""), Begins::After(marks.clone()));
        assert_eq!(begins("room=a&room=b&lastEventId=1%7E2.10%7E0", ""), Begins::After(marks.clone()));
        let both = begins("room=a&room=b&last_event_id=9~9.9~9&since=last:4", "last-event-id: 1~2.10~0\r\n");
        assert_eq!(both, Begins::After(marks), "the header is newer than the address");
        assert_eq!(begins("room=a&since=last:4", "Last-Event-ID: \r\n"), Begins::Since(Since::Last(4)));
        assert_eq!(begins("room=a&since=seconds:9&last_event_id=", ""), Begins::Since(Since::Seconds(9)));
        for hostile in ["42", "1~2", "1~2.10~0.1~1", "é", "1~2,1~2", "null"] {
            assert_eq!(begins(rooms, &format!("Last-Event-ID: {hostile}\r\n")), Begins::Elsewhere, "{hostile}");
        }
    }

    #[test]
    fn only_pages_that_are_named_may_read_with_cookies() {
        let mut config = Config::default();
        let reader = |config: &Config, origin: &str| {
            let asked = read("room=a", &format!("Origin: {origin}\r\n"), config).expect("fits");
            (asked.varies, asked.reader.map(|reader| (reader.origin.to_string(), reader.credentials)))
        };
        assert_eq!(reader(&config, "https://a.example"), (false, None));
        config.cors.origins = vec!["*".to_owned(), "https://*.named.example".to_owned()];
        let a = "https://a.example".to_owned();
        assert_eq!(reader(&config, "https://a.example"), (true, Some((a, false))));
        let b = "https://b.named.example".to_owned();
        assert_eq!(reader(&config, "https://b.named.example"), (true, Some((b, true))));
        config.cors.origins = vec!["https://a.example".to_owned()];
        assert_eq!(reader(&config, "https://b.example"), (true, None));
    }
}
