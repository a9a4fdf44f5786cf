//! What every call passes through: a span with the call's name, the client's
//! deadline, a net under panics, and what is held until its answer is read.

use std::any::Any;
use std::convert::Infallible;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures::FutureExt;
use http_body_util::BodyExt;
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::http::{Request, Response};
use tower::{Layer, Service};
use tracing::Instrument;

use crate::context::Engine;
use crate::steps::{Call, Trace};

/// Makes a [`CallService`] of a service.
#[derive(Clone)]
pub(crate) struct CallLayer {
    engine: Arc<Engine>,
}

impl CallLayer {
    /// For the calls of this engine.
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self { engine }
    }
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        let engine = Arc::clone(&self.engine);
        CallService { inner, engine }
    }
}

/// Wraps every call.
#[derive(Clone)]
pub(crate) struct CallService<S> {
    inner: S,
    engine: Arc<Engine>,
}

/// What an answer holds until the client has read it, or is gone: an extension of the
/// response.
#[derive(Clone)]
pub(crate) struct Held(Arc<dyn Any + Send + Sync>);

impl Held {
    /// Holds a thing.
    pub(crate) fn new(thing: impl Any + Send + Sync) -> Self {
        Self(Arc::new(thing))
    }

    /// The response, with what it holds in its body: the server drops that once all of
    /// it is sent, or cannot be.
    fn in_body(mut response: Response<Body>) -> Response<Body> {
        let Some(Self(held)) = response.extensions_mut().remove() else {
            return response;
        };
        response.map(|body| {
            Body::new(body.map_frame(move |frame| {
                let _until_here = &held;
                frame
            }))
        })
    }
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Answer {
        // The service that was polled ready is the one to call.
        let ready = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, ready);
        let rpc = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let empty = tracing::field::Empty;
        let span = tracing::info_span!("rpc", rpc, pod = empty, container = empty, image = empty);
        let deadline = timeout_of(&request);
        let traced = Call::begin(&rpc);
        #[cfg(feature = "otel")]
        let caller = crate::otel::parent(request.headers());
        let engine = Arc::clone(&self.engine);
        let work = async move {
            let began = Instant::now();
            let call =
                AssertUnwindSafe(Call::follow(traced.clone(), inner.call(request))).catch_unwind();
            let answer = match deadline {
                Some(limit) => match tokio::time::timeout(limit, call).await {
                    Ok(answer) => answer,
                    Err(_) => Ok(Ok(
                        Status::deadline_exceeded("the client's deadline").into_http()
                    )),
                },
                None => call.await,
            };
            let response = match answer {
                Ok(Ok(response)) => response,
                Ok(Err(never)) => match never {},
                Err(_) => {
                    tracing::error!(rpc, "a handler panicked");
                    Status::internal(format!("{rpc} panicked; this is a defect")).into_http()
                }
            };
            let elapsed = began.elapsed();
            report(&response, elapsed);
            let code = code_of(&response);
            if let Some(metrics) = &engine.metrics {
                metrics.call(&rpc, code, elapsed);
            }
            if let Some(call) = traced {
                let (trace, pod) = (call.end(code), call.pod());
                #[cfg(feature = "otel")]
                if let Some(spans) = &engine.spans {
                    spans.call(&caller, &trace, pod.as_deref());
                }
                keep(&engine, trace, pod);
            }
            Ok(Held::in_body(response))
        };
        Box::pin(work.instrument(span))
    }
}

/// Counts a call's steps, and remembers them if its pod is still there.
fn keep(engine: &Engine, trace: Trace, pod: Option<String>) {
    if let Some(metrics) = &engine.metrics {
        metrics.steps(trace.rpc, &trace.steps);
    }
    let view = pod.and_then(|pod| engine.index.pod(&pod).found());
    if let Some(view) = view {
        engine.traces.keep(view.id.as_str(), trace);
    }
}

/// gRPC's number for how a call ended; a call that went well says it later, behind
/// its answer.
fn code_of(response: &Response<Body>) -> i32 {
    let code = response.headers().get("grpc-status");
    let code = code.and_then(|code| code.to_str().ok()?.parse().ok());
    code.unwrap_or(0)
}

fn report(response: &Response<Body>, elapsed: Duration) {
    let milliseconds = elapsed.as_secs_f64() * 1000.0;
    let header = |name: &str| {
        response
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok())
    };
    match header("grpc-status") {
        None | Some("0") => tracing::debug!(milliseconds, "done"),
        Some(code) => {
            let message = header("grpc-message").unwrap_or_default();
            tracing::info!(milliseconds, code, message, "refused or failed");
        }
    }
}

/// The deadline that gRPC clients send: up to eight digits and a unit.
fn timeout_of(request: &Request<Body>) -> Option<Duration> {
    let text = request.headers().get("grpc-timeout")?.to_str().ok()?;
    parse_timeout(text)
}

fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_have_every_unit_of_grpc() {
        for (text, wanted) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("2M", Some(Duration::from_secs(120))),
            ("100m", Some(Duration::from_millis(100))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("100000000S", None),
            ("S", None),
            ("", None),
            ("5x", None),
        ] {
            assert_eq!(parse_timeout(text), wanted, "{text}");
        }
    }
}
