//! The guests for aarch64: `crate::guests` says what they are. Included by this architecture's half
//! of `arch/`, which is the only place that knows which one is being built.

crate::guests::embed! { "machine.inc":
    hello "hello.S"
    echo "echo.S"
    exit "exit.S"
    add "add.S"
    memory "memory.S"
    widths "widths.S"
    relay "relay.S"
    uart "uart.S"
    spin "spin.S"
    sleep "sleep.S"
    exits "exits.S"
    burst "burst.S"
    smp "smp.S"
    pci "pci.S"
    disk "disk.S"
    crash "crash.S"
    unemulated "unemulated.S"
    reset "reset.S"
    poweroff "poweroff.S"
    panic "panic.S"
    sve "sve.S"
    pauth "pauth.S"

    simple_arm64 "../reference/simple_arm64.S"
    kvmtest_arm64 "../reference/kvmtest_arm64.S"
}
