/** What a policy is given, and what it answers. A policy's author need not touch this file. */

import { Json, NOTHING } from "./json";
import { Reader } from "./reader";

/** What a decision may go by. */
export class Input {
  /** Every worker of the pool, in a stable order. */
  workers: Worker[] = [];
  request: Request = new Request();
  /** The beginning of the request's text, where `needs` has `request_text`. */
  requestText: string | null = null;
  /** The object from the plugin's configuration. */
  config: Json = NOTHING;
  /** What the plugin has returned before. */
  state: Json = NOTHING;
  /** Unix time. */
  nowMs: u64 = 0;
  /** 53 random bits, new for each decision. */
  entropy: u64 = 0;
}

export class Worker {
  url: string = "";
  /** One that is not healthy must not be chosen. */
  healthy: bool = false;
  /** Requests in flight on it through this router. */
  load: u64 = 0;
  /** Where `needs` has `pending_tokens`: estimated prompt tokens that it has yet to answer. */
  pendingTokens: u64 = 0;
  /** Where `needs` has `prefix_match`: estimated tokens of this prompt that it still holds. */
  prefixMatch: u64 = 0;
  /** Where `needs` has `engine_metrics`; null where the engine does not say. */
  metrics: Metrics | null = null;
  /** Where `needs` has `worker_info`, as are those below. */
  id: string = "";
  weight: f64 = 1;
  labels: Map<string, string> | null = null;
  /** Moving average of the time to the first token; NaN where it is not known. */
  ttftMs: f64 = NaN;
}

/** What an engine last said of itself; NaN where it does not say. */
export class Metrics {
  queued: f64 = NaN;
  running: f64 = NaN;
  /** Share of its KV cache in use, 0 to 1. */
  kvUsage: f64 = NaN;
  ageMs: f64 = NaN;
}

export class Request {
  id: string = "";
  path: string = "";
  model: string | null = null;
  stream: bool = false;
  session: string | null = null;
  /** 0 for the first try. */
  attempt: u32 = 0;
  /** Length of the request's text in full, in UTF-8. */
  textBytes: u64 = 0;
  /** Estimated; where `needs` has `pending_tokens`. */
  promptTokens: u64 = 0;
}

/** How a request that this plugin placed has ended. */
export class Outcome {
  worker: string = "";
  success: bool = false;
  /** 0 where there was none. */
  status: u32 = 0;
  /** Time to the first token; NaN where none came. */
  ttftMs: f64 = NaN;
  durationMs: f64 = 0;
  outputChunks: u32 = 0;
  error: string | null = null;
}

/** An answer: made by `pick`, `none` or `fail`. */
export class Decision {
  selectedWorker: i32 = -1;
  /** An object as JSON that is merged into the state key by key; null leaves it as it is. */
  state: string | null = null;
  error: string | null = null;
}

/** The worker with this index takes the request. */
export function pick(index: i32): Decision {
  const decision = new Decision();
  decision.selectedWorker = index;
  return decision;
}

/** No worker should take the request. */
export function none(): Decision {
  return new Decision();
}

/** The plugin itself reports that it failed. */
export function fail(error: string): Decision {
  const decision = new Decision();
  decision.error = error;
  return decision;
}

// ---- from JSON

export function readInput(reader: Reader): Input {
  const input = new Input();
  let complete = false;
  reader.beginObject();
  while (reader.nextKey()) {
    if (reader.is("workers")) {
      complete = true;
      reader.beginArray();
      while (reader.nextItem()) input.workers.push(readWorker(reader));
    } else if (reader.is("request")) readRequest(reader, input.request);
    else if (reader.is("request_text")) input.requestText = text(reader);
    else if (reader.is("config")) input.config = reader.json();
    else if (reader.is("state")) input.state = reader.json();
    else if (reader.is("now_ms")) input.nowMs = reader.u64();
    else if (reader.is("entropy")) input.entropy = reader.u64();
    else reader.skip();
  }
  reader.finish();
  if (!complete && !reader.problem.length) reader.problem = "the input has no key workers";
  return input;
}

function readWorker(reader: Reader): Worker {
  const worker = new Worker();
  reader.beginObject();
  while (reader.nextKey()) {
    if (reader.is("url")) worker.url = reader.string();
    else if (reader.is("healthy")) worker.healthy = reader.bool();
    else if (reader.is("load")) worker.load = reader.u64();
    else if (reader.is("pending_tokens")) worker.pendingTokens = whole(reader);
    else if (reader.is("prefix_match")) worker.prefixMatch = whole(reader);
    else if (reader.is("queued")) metricsOf(worker).queued = number(reader);
    else if (reader.is("running")) metricsOf(worker).running = number(reader);
    else if (reader.is("kv_usage")) metricsOf(worker).kvUsage = number(reader);
    else if (reader.is("metrics_age_ms")) metricsOf(worker).ageMs = number(reader);
    else if (reader.is("id")) worker.id = reader.string();
    else if (reader.is("weight")) worker.weight = reader.f64();
    else if (reader.is("labels")) worker.labels = texts(reader);
    else if (reader.is("ttft_ms")) worker.ttftMs = number(reader);
    else reader.skip();
  }
  return worker;
}

function readRequest(reader: Reader, request: Request): void {
  reader.beginObject();
  while (reader.nextKey()) {
    if (reader.is("id")) request.id = reader.string();
    else if (reader.is("path")) request.path = reader.string();
    else if (reader.is("model")) request.model = text(reader);
    else if (reader.is("stream")) request.stream = reader.bool();
    else if (reader.is("session")) request.session = text(reader);
    else if (reader.is("attempt")) request.attempt = reader.u32();
    else if (reader.is("text_bytes")) request.textBytes = reader.u64();
    else if (reader.is("prompt_tokens")) request.promptTokens = whole(reader);
    else reader.skip();
  }
}

export function readOutcome(reader: Reader): Outcome {
  const outcome = new Outcome();
  reader.beginObject();
  while (reader.nextKey()) {
    if (reader.is("worker")) outcome.worker = reader.string();
    else if (reader.is("success")) outcome.success = reader.bool();
    else if (reader.is("status")) outcome.status = <u32>whole(reader);
    else if (reader.is("ttft_ms")) outcome.ttftMs = number(reader);
    else if (reader.is("duration_ms")) outcome.durationMs = reader.f64();
    else if (reader.is("output_chunks")) outcome.outputChunks = reader.u32();
    else if (reader.is("error")) outcome.error = text(reader);
    else reader.skip();
  }
  reader.finish();
  return outcome;
}

function metricsOf(worker: Worker): Metrics {
  const metrics = worker.metrics;
  if (metrics !== null) return metrics;
  const made = new Metrics();
  worker.metrics = made;
  return made;
}

function text(reader: Reader): string | null {
  return reader.isNull() ? null : reader.string();
}

function texts(reader: Reader): Map<string, string> {
  const map = new Map<string, string>();
  reader.beginObject();
  while (reader.nextKey()) {
    const key = reader.key();
    map.set(key, reader.string());
  }
  return map;
}

function number(reader: Reader): f64 {
  return reader.isNull() ? NaN : reader.f64();
}

function whole(reader: Reader): u64 {
  return reader.isNull() ? 0 : reader.u64();
}
