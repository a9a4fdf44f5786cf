//! Spans of calls and their steps for OpenTelemetry.
//!
//! Made after a call has ended, from what the step clock recorded: nothing of it
//! is on a call's path. A caller's `traceparent` becomes the parent of the call,
//! the call that of its steps, a step of the engine that of the monitor's parts of
//! it. Sent in the background to where `OTEL_EXPORTER_OTLP_ENDPOINT` says; without
//! that variable, nothing is made.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{
    SpanBuilder, SpanKind, Status, TraceContextExt, Tracer, TracerProvider,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use runtime::client::steps::Place;
use tonic::codegen::http::HeaderMap;

use crate::steps::Trace;

/// The variable that turns it on; the exporter reads it and its kin itself.
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";

/// Where spans go.
pub(crate) struct Spans {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(|name| name.as_str()).collect()
    }
}

/// The span of a caller, if its headers name one.
pub(crate) fn parent(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

impl Spans {
    /// Sends where the environment says; `None` where it says nothing.
    pub(crate) fn of_environment() -> Option<Result<Self, ExporterBuildError>> {
        std::env::var_os(ENDPOINT)?;
        let exporter = SpanExporter::builder().with_tonic().build();
        Some(exporter.map(|exporter| {
            let resource = Resource::builder()
                .with_service_name("slipway")
                .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
            let provider = SdkTracerProvider::builder()
                .with_resource(resource.build())
                .with_batch_exporter(exporter);
            Self::new(provider.build())
        }))
    }

    fn new(provider: SdkTracerProvider) -> Self {
        let tracer = provider.tracer("slipway");
        Self { provider, tracer }
    }

    /// Makes the spans of a call that ended.
    pub(crate) fn call(&self, parent: &Context, trace: &Trace, pod: Option<&str>) {
        let began = UNIX_EPOCH + Duration::from_nanos(u64::try_from(trace.began_at).unwrap_or(0));
        let at = |moment: u64| began + Duration::from_nanos(moment.saturating_sub(trace.began));
        let mut attributes = vec![
            KeyValue::new("rpc.system", "grpc"),
            KeyValue::new("rpc.method", trace.rpc),
            KeyValue::new("rpc.grpc.status_code", i64::from(trace.code)),
        ];
        let ids = [
            ("slipway.pod", pod),
            ("slipway.container", trace.container.as_deref()),
        ];
        for (name, id) in ids {
            attributes.extend(id.map(|id| KeyValue::new(name, id.to_owned())));
        }
        let builder = SpanBuilder::from_name(trace.rpc)
            .with_kind(SpanKind::Server)
            .with_start_time(began)
            .with_attributes(attributes);
        let call = self.child(builder, parent);
        if trace.code != 0 {
            call.span()
                .set_status(Status::error(format!("code {}", trace.code)));
        }
        // A part comes later in the list than its whole.
        let mut made: Vec<(Context, SystemTime)> = Vec::with_capacity(trace.steps.len());
        for step in &trace.steps {
            let process = match step.place {
                Place::Engine => "engine",
                Place::Monitor => "monitor",
            };
            let builder = SpanBuilder::from_name(step.name.clone())
                .with_start_time(at(step.start))
                .with_attributes([KeyValue::new("slipway.process", process)]);
            let whole = step.parent.and_then(|parent| made.get(parent));
            let context = self.child(builder, whole.map_or(&call, |(context, _)| context));
            made.push((context, at(step.end)));
        }
        for (context, end) in made {
            context.span().end_with_timestamp(end);
        }
        call.span().end_with_timestamp(began + trace.took);
    }

    fn child(&self, builder: SpanBuilder, parent: &Context) -> Context {
        parent.with_span(self.tracer.build_with_context(builder, parent))
    }
}

impl Drop for Spans {
    fn drop(&mut self) {
        // What was not sent by now is lost with the process.
        let _lost = self
            .provider
            .shutdown_with_timeout(Duration::from_millis(500));
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::SpanId;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SpanData, SpanExporter};
    use runtime::client::steps::Step;

    use super::*;

    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Kept {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().expect("one thread").extend(batch);
            Ok(())
        }
    }

    fn step(name: &'static str, place: Place, parent: Option<usize>) -> Step {
        let (name, start, end) = (Cow::Borrowed(name), 1_000, 3_000);
        Step {
            name,
            place,
            start,
            end,
            parent,
        }
    }

    #[test]
    fn parents_reach_from_the_caller_over_the_engine_to_the_monitor() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(kept.clone());
        let spans = Spans::new(provider.build());
        let mut headers = HeaderMap::new();
        let caller = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        headers.insert("traceparent", caller.parse().expect("a value"));
        let trace = Trace {
            rpc: "RunPodSandbox",
            began_at: 5_000_000_000,
            began: 500,
            took: Duration::from_nanos(9_000),
            code: 0,
            container: None,
            steps: vec![
                step("monitor: setup", Place::Engine, None),
                step("join cgroups", Place::Monitor, Some(0)),
            ],
        };
        spans.call(&parent(&headers), &trace, Some("p"));
        let made = kept.0.lock().expect("one thread").clone();
        let of = |name: &str| {
            made.iter()
                .find(|span| span.name == name)
                .expect("made")
                .clone()
        };
        let (call, whole, part) = (
            of("RunPodSandbox"),
            of("monitor: setup"),
            of("join cgroups"),
        );
        assert_eq!(
            call.parent_span_id,
            SpanId::from_hex("b7ad6b7169203331").expect("an id")
        );
        assert_eq!(whole.parent_span_id, call.span_context.span_id());
        assert_eq!(part.parent_span_id, whole.span_context.span_id());
        assert_eq!(
            part.start_time,
            UNIX_EPOCH + Duration::from_nanos(5_000_000_500)
        );
        assert_eq!(
            call.end_time,
            UNIX_EPOCH + Duration::from_nanos(5_000_009_000)
        );
    }
}
