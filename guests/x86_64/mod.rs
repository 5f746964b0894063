//! The guests for x86-64: `crate::guests` says what they are. Included by this architecture's half
//! of `arch/`, which is the only place that knows which one is being built.

crate::guests::embed! { "machine.inc":
    hello "hello.S"
    echo "echo.S"
    exit "exit.S"
    add "add.S"
    memory "memory.S"
    widths "widths.S"
    ports "ports.S"
    strings "strings.S"
    relay "relay.S"
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
    reset_keyboard "reset_keyboard.S"
    poweroff "poweroff.S"
    panic "panic.S"
    multiboot "multiboot.S"
    pc "pc.S"

    tiny_kernel "../reference/tiny_kernel.S"
    kvmtest "../reference/kvmtest.S"
    kvmtest_greeting "../reference/kvmtest_greeting.S"
    kvmsample "../reference/kvmsample.S"
}
