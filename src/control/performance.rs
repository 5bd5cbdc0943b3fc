//! `GET /api/v1/performance`: what the hub did, from the stored history.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use hyper::StatusCode;
use hyper::header::HeaderMap;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::answer::{ApiError, json};
use super::api::Api;
use super::backend::Backend;
use super::body::Asked;
use super::moment::{moment_text, parse_moment, unix_ms};
use super::openapi::Refusals;
use super::store::{POINTS_MAX, Sample};

/// How far back the answer goes where the caller says nothing.
const BACK_MS: u64 = 3_600_000;
/// Points where the caller names no step: as many as fit a screen.
const POINTS_DEFAULT: u64 = 360;
/// Steps are this much, or several times as much: how often samples are taken, and what is put together later on.
const FINE_S: u64 = 10;
const MINUTE_S: u64 = 60;
/// The longest step.
const STEP_S_MAX: u64 = 7 * 86_400;

#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PerformanceAsked {
    /// RFC 3339, or unix time in seconds; an hour ago where it is left out.
    since: Option<Box<str>>,
    /// Seconds in one point, 1 to 604800; rounded up to tens, and from a minute on to minutes. Where it is left out it is
    /// chosen.
    step: Option<u64>,
}

#[derive(Serialize, ToSchema)]
struct PerformancePage {
    /// From when on, RFC 3339 in UTC.
    since: String,
    /// Seconds in one point.
    step_s: u64,
    /// The oldest first; spans of which nothing is known are left out.
    points: Vec<Point>,
}

#[derive(Serialize, ToSchema)]
struct Point {
    /// When it begins, RFC 3339 in UTC.
    at: String,
    #[serde(flatten)]
    figures: Sample,
}

/// Shows what the hub did over time.
#[utoipa::path(
    operation_id = "performance",
    get,
    path = "/api/v1/performance",
    tag = "health",
    params(PerformanceAsked),
    responses((status = 200, body = PerformancePage), Refusals),
)]
pub(crate) async fn show<B: Backend>(
    State(api): State<Arc<Api<B>>>,
    headers: HeaderMap,
    Asked(asked): Asked<PerformanceAsked>,
) -> Result<Response, ApiError> {
    api.admin(&headers)?;
    let now_ms = unix_ms();
    let since_ms = match &asked.since {
        Some(since) => parse_moment(since)?,
        None => now_ms.saturating_sub(BACK_MS),
    };
    let step_s = step_s(now_ms.saturating_sub(since_ms), asked.step)?;
    let Some(store) = &api.store else {
        let message = "no history is kept: store.path names no file";
        return Err(ApiError::new(StatusCode::NOT_FOUND, "not_found", message));
    };
    // A first point that is cut in two would look like a fall.
    let since_ms = since_ms / (step_s * 1000) * (step_s * 1000);
    let samples = api.remote(store.performance(since_ms, step_s * 1000)).await?;
    let points = samples.into_iter().map(|figures| Point { at: moment_text(figures.at_ms), figures }).collect();
    Ok(json(StatusCode::OK, &PerformancePage { since: moment_text(since_ms), step_s, points }))
}

/// The step for so long a time.
fn step_s(span_ms: u64, asked: Option<u64>) -> Result<u64, ApiError> {
    let round = |step_s: u64| {
        let unit = if step_s > MINUTE_S - FINE_S { MINUTE_S } else { FINE_S };
        step_s.max(1).div_ceil(unit) * unit
    };
    let for_points = |points: u64| round(span_ms.div_ceil(1000).div_ceil(points));
    let Some(asked) = asked else { return Ok(for_points(POINTS_DEFAULT)) };
    if !(1..=STEP_S_MAX).contains(&asked) {
        return Err(ApiError::bad_request(format!("step is 1 to {STEP_S_MAX} seconds")));
    }
    // One more than the span has, since both of its ends are cut.
    let least = for_points(POINTS_MAX as u64 - 1);
    if round(asked) < least {
        let message = format!("that would be more than {POINTS_MAX} points: since then a step has {least} s at least");
        return Err(ApiError::bad_request(message));
    }
    Ok(round(asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_chosen_rounded_up_or_refused() {
        let step = |span_s: u64, asked| step_s(span_s * 1000, asked).ok();
        assert_eq!(step(3600, None), Some(10));
        assert_eq!(step(24 * 3600, None), Some(240));
        assert_eq!(step(3600, Some(1)), Some(10));
        assert_eq!(step(3600, Some(15)), Some(20));
        assert_eq!(step(3600, Some(59)), Some(60));
        assert_eq!(step(3600, Some(61)), Some(120));
        assert_eq!(step(24 * 3600, Some(10)), None, "8640 points");
        assert_eq!(step(9000, Some(10)), Some(10));
        assert_eq!((step(60, Some(0)), step(60, Some(604_801))), (None, None));
        assert_eq!(step(u64::MAX / 1000, Some(604_800)), None);
    }
}
