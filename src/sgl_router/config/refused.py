"""Options of other routers that this one does not have: why, and what to use instead.

They are those of sglang-router 0.3.2, smg 1.13.0 and vllm-router 0.1.17, by the name that the
field would have. A person who brings a command line from there is told; nothing is ignored.
"""

_BYTES = "bodies pass through byte for byte"

_REASONS: tuple[tuple[str, str], ...] = (
    (
        "workers are not discovered: list them with --worker-urls, or let the platform add and "
        "remove them with POST /workers and DELETE /workers/{id}",
        "service_discovery service_discovery_port service_discovery_namespace selector "
        "prefill_selector decode_selector encode_selector router_selector discovery_provider "
        "discovery_file discovery_check_interval_secs kv_connector_annotation "
        "kv_engine_id_annotation vllm_discovery_address",
    ),
    (
        "models have the names under which workers are listed: give model_id under the key workers "
        "or with POST /workers",
        "model_id_from",
    ),
    (
        f"{_BYTES}, so that no model is renamed: let the engine serve it under that name as well",
        "model_alias",
    ),
    (
        "requests are routed by model wherever a worker is listed with a model_id (key workers, or "
        "POST /workers): leave the flag out",
        "enable_igw",
    ),
    (
        "a bucket of tokens does not limit how much runs at a time: use --max-concurrent-requests, "
        "which counts a request until its answer has ended",
        "rate_limit_tokens_per_second",
    ),
    (
        "there is one queue, in order of arrival: use --max-concurrent-requests and --queue-size, "
        "and another router for another class of requests",
        "priority_scheduler_enabled priority_scheduler_default_max_class priority_scheduler_config "
        "priority_scheduler_tenant_metric_top_n enable_program_scheduling "
        "program_scheduling_config_json",
    ),
    (
        "there is one limit for both halves of a request: use --max-concurrent-requests, "
        "--queue-size and --queue-timeout-secs",
        "prefill_max_inflight_requests_per_worker prefill_queue_size prefill_queue_timeout_secs "
        "pd_admission_wait_secs",
    ),
    (
        "tenants are not told apart: use --api-key, and put a gateway that knows tenants in front",
        "tenant_api_key trust_tenant_header tenant_header_name tenant_rate_limit_enabled "
        "tenant_rate_limit_config",
    ),
    (
        "the control plane has one key: use --admin-api-key",
        "control_plane_api_keys control_plane_audit_enabled jwt_issuer jwt_audience jwt_jwks_uri "
        "jwt_role_mapping",
    ),
    (
        f"{_BYTES}, so that no tokenizer is needed: leave the option out, or give it to the engine",
        "model_path model tokenizer_path chat_template disable_tokenizer_autoload "
        "tokenizer_cache_enable_l0 tokenizer_cache_l0_max_entries tokenizer_cache_l0_max_memory "
        "tokenizer_cache_enable_l1 tokenizer_cache_l1_max_memory",
    ),
    (
        f"{_BYTES}, so that reasoning and tool calls are the engine's to parse: give the engine "
        "its parser",
        "reasoning_parser tool_call_parser parser",
    ),
    (
        f"{_BYTES}, so that images and sound are the engine's to fetch and prepare: leave the "
        "option out, or give the engine its own",
        "multimodal_tensor_transport multimodal_shm_min_bytes multimodal_max_inflight_bytes "
        "mm_per_request_image_limit mm_processing mm_pixel_cache_mb mm_pixel_rdma "
        "mm_allowed_media_domains mm_allow_private_media_hosts rdma_listen_ip rdma_slot_ttl_s "
        "log_mm_timing",
    ),
    (
        f"{_BYTES}, so that nothing is put into a stream: raise the idle time-out of what stands "
        "in front",
        "sse_keepalive_secs",
    ),
    (
        "the router calls no tools: let the client or the engine call MCP servers",
        "mcp_config_path",
    ),
    (
        "the router stores no conversations and runs nothing in the background: let the engine, or "
        "a service in front, keep them",
        "history_backend history_memory_max_responses history_memory_max_items "
        "history_memory_retention_secs max_background_responses oracle_wallet_path "
        "oracle_tns_alias oracle_connect_descriptor oracle_username oracle_password "
        "oracle_external_auth "
        "oracle_pool_min oracle_pool_max oracle_pool_timeout_secs postgres_db_url "
        "postgres_pool_max postgres_op_timeout_secs redis_url redis_pool_max redis_retention_days "
        "redis_op_timeout_secs schema_config storage_hook_wasm_path storage_context_headers",
    ),
    (
        "any engine that speaks the OpenAI API over HTTP will do, and need not be named: leave the "
        "option out; where prefill and decode are separate, use --pd-engine",
        "backend",
    ),
    (
        "engines are spoken to over HTTP/1.1, not gRPC, ZMQ or HTTP/2: leave the option out, and "
        "start engines with their HTTP server",
        "zmq_engine_count upstream_http2",
    ),
    (
        "idle connections to engines are closed a little before SGLang and vLLM close them: leave "
        "the option out",
        "upstream_pool_idle_timeout_secs",
    ),
    (
        "the ranks of a data-parallel engine are not told apart: start one engine for each rank "
        "and list them all with --worker-urls",
        "dp_aware dp_minimum_tokens_scheduler intra_node_data_parallel_size",
    ),
    ("there is one load balancer, and it is always on: leave the flag out", "mini_lb"),
    (
        "there is no separate encode engine: use --pd-disaggregation with --prefill and --decode",
        "epd_disaggregation encode encode_policy",
    ),
    (
        "the engines' kind is an option of its own: use --pd-disaggregation --pd-engine vllm",
        "vllm_pd_disaggregation",
    ),
    (
        "with --pd-engine vllm engines meet as with nixl, by kv_transfer_params in the prefill "
        "engine's answer: leave the option out, and set up NIXL in place of mooncake or moriio",
        "kv_connector",
    ),
    (
        "there is no bucket policy: use --policy cache_aware, or a plugin of your own (--plugin)",
        "bucket_adjust_interval_secs",
    ),
    (
        "the manual policy pins a key that it does not know to the less loaded of two random "
        "workers: use a plugin of your own for another rule (--plugin)",
        "assignment_mode",
    ),
    (
        "cache_aware judges by the prompts that it has routed, not by events of engines: use "
        "--cache-threshold and --max-tree-size, or a plugin of your own (--plugin)",
        "kv_index block_size cache_boundaries cache_index cache_ttl_secs selection_policy "
        "selection_accounting_ttl_ms selection_temperature overlap_decay worker_warmup_secs "
        "worker_warmup_share worker_warmup_blocks worker_warmup_thin_ratio "
        "worker_warmup_divert_every balance_token_usage_threshold overload_token_usage_threshold "
        "router_temperature kv_penalty_host kv_penalty_external kv_penalty_disk kv_event_source "
        "kv_event_replay_source kv_event_block_size kv_event_model pd_kv_events",
    ),
    (
        "the figures in prefix_hash, least_load and power_of_two are fixed: use a plugin of your "
        "own for others (--plugin)",
        "prefix_token_count prefix_hash_load_factor prefix_hash_balance_abs_threshold "
        "least_load_kv_pressure_weight least_load_default_throughput "
        "least_load_mean_prefill_tokens least_load_max_waiting_requests power_of_two_load_metric",
    ),
    (
        "sessions are a matter of the policy: use --policy consistent_hashing or --policy manual, "
        "whose key is the header x-smg-routing-key",
        "routing_key_override sticky_sessions routing_key_headers "
        "kv_aware_session_affinity_ttl_secs",
    ),
    (
        "a worker is not taken out for its queue: use --max-concurrent-requests, or a policy that "
        "goes by engines' metrics, such as least_load",
        "worker_overload_waiting_requests worker_overload_token_usage worker_overload_protection "
        "disable_worker_overload_protection worker_overload_shed",
    ),
    (
        "a worker that hangs is found by checks and by its circuit: use "
        "--health-check-interval-secs, --first-byte-timeout-secs and --cb-failure-threshold",
        "worker_stall_secs worker_wedge_secs worker_stale_secs",
    ),
    (
        "a worker that fails stays listed, gets no requests, and comes back by itself: remove one "
        "for good with DELETE /workers/{id}",
        "remove_unhealthy_workers no_remove_unhealthy_workers worker_auto_recovery "
        "no_worker_auto_recovery",
    ),
    (
        "workers are checked from the start, as a check costs little: use "
        "--worker-startup-timeout-secs for how long they may take",
        "worker_startup_delay",
    ),
    (
        "adding and removing workers waits in no queue: leave the option out",
        "job_queue_capacity job_queue_concurrency",
    ),
    ("it has another name here: use --engine-metrics-interval-secs", "load_monitor_interval"),
    (
        "engines' metrics are read for policies that use them: use another --policy, or a longer "
        "--engine-metrics-interval-secs",
        "disable_load_monitoring",
    ),
    (
        "how much of a body is kept for a retry is fixed: use --disable-retries where nothing is "
        "to be sent again",
        "max_buffered_request_bytes",
    ),
    ("it has another name here: use --client-body-timeout-secs", "stream_body_stall_timeout_secs"),
    ("it has another name here: use --client-head-timeout-secs", "header_read_timeout_secs"),
    ("it has another name here: use --keep-alive-timeout-secs", "idle_connection_timeout_secs"),
    ("it has another name here: use --cache-threshold", "cache_match_threshold"),
    ("it has another name here: use --balance-abs-threshold", "spill_abs_threshold"),
    ("it has another name here: use --balance-rel-threshold", "spill_rel_threshold"),
    ("it has another name here: use --max-idle-secs", "sticky_key_idle_secs"),
    (
        "/liveness and /readiness wait behind no request: ask for them on --port",
        "health_check_port",
    ),
    (
        "there is no control plane for reinforcement learning: use POST /flush_cache and POST "
        "/abort_request, and call the engines themselves for the rest",
        "enable_rl rl_control_timeout_secs rl_fanout_concurrency",
    ),
    (
        "routers do not talk to each other: run several behind a load balancer, with --policy "
        "consistent_hashing where they must agree on a session's worker",
        "enable_mesh mesh_server_name mesh_host mesh_advertise_host mesh_port mesh_peer_urls "
        "mesh_tls_ca_cert mesh_tls_cert mesh_tls_key",
    ),
    ("WebAssembly is always on, and chooses the worker: use --plugin", "enable_wasm"),
    (
        "plugins choose the worker and do not change requests: use --plugin for that, and a proxy "
        "in front for the other",
        "wasm_middleware wasm_middleware_sha256 wasm_middleware_route",
    ),
    (
        "the log goes to standard error, in lines: let the service manager keep and convert it",
        "log_dir log_json",
    ),
    (
        "traces are not sent: follow a request by its id (--request-id-headers), which engines are "
        "sent and clients get back",
        "enable_trace otlp_traces_endpoint",
    ),
    (
        "the histograms' buckets are fixed, so that those of several routers add up: leave the "
        "option out",
        "prometheus_duration_buckets",
    ),
    (
        "the router is Python and has no jemalloc to ask: use a profiler of Python's memory",
        "jemalloc_prof_dir",
    ),
)

REFUSED_POLICIES = {
    "bucket": "least_load goes by what waits on each worker, which long prompts make longer",
    "consistent_hash": "consistent_hashing",
    "kv_aware": "cache_aware goes by the prompts that each worker has been sent",
    "passthrough": "random; a client may name the worker in x-smg-target-worker",
    "sticky_least_loaded": "manual pins each session to the less loaded of two workers",
}
"""Policies of those routers that this one does not have -> the nearest one here."""

REFUSED: dict[str, str] = {name: why for why, names in _REASONS for name in names.split()}
"""Name -> a sentence without its full stop."""
