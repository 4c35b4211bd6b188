"""The plugin system: WebAssembly modules as load-balancing policies. The only user of wasmtime."""
