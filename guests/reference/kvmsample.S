// kvmsample: real mode in a segment of its own, counts on port 0x10 in 16 bits without an end.
// Options: --memory 1M --load 0x10000 --reg cs=0x1000 --reg ss=0x1000 --reg ds=0x1000 --reg es=0x1000 --reg fs=0x1000 --reg gs=0x1000 --reg ip=0 --reg rsp=0xffffffff --debug-console port:0x10,as=numbers --timeout 2s

.code16
    xor ax, ax
.Lkvmsample:
    out 0x10, ax
    inc ax
    jmp .Lkvmsample
.code64
