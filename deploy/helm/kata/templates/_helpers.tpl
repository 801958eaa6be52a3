{{- /* What contradicts itself, and what no schema can say in words. */ -}}
{{- define "kata.check" -}}
{{- if and (eq .Values.mode "job") (not .Values.nodes) }}{{ fail "mode job needs the names of nodes: set nodes, or mode daemonset" }}{{ end }}
{{- if and (eq .Values.mode "daemonset") .Values.nodes }}{{ fail "nodes are for mode job: a daemonset takes those of nodeSelector" }}{{ end }}
{{- if and .Values.image.tag .Values.image.digest }}{{ fail "image.tag and image.digest contradict each other: set one of them" }}{{ end }}
{{- if ne .Values.distribution "k8s" }}{{ fail (printf "distribution %s is not supported yet: it writes containerd's configuration anew at each start, and has its own containerd" .Values.distribution) }}{{ end }}
{{- if and .Values.verification.enabled (not .Values.runtimeClass.names) }}{{ fail "verification.enabled needs a RuntimeClass: set runtimeClass.names, or verification.enabled=false" }}{{ end }}
{{- if and .Values.runtimeClass.overhead (not .Values.runtimeClass.overhead.memory) }}{{ fail "runtimeClass.overhead without memory: a pod's cgroup would have no room for its virtual machine" }}{{ end }}
{{- end }}

{{- define "kata.image" -}}
{{- if .Values.image.digest }}{{ .Values.image.repository }}@{{ .Values.image.digest }}{{ else }}{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}{{ end }}
{{- end }}

{{- define "kata.labels" -}}
app.kubernetes.io/name: kata
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- /* What selects pods; a list of "root" and a component. */ -}}
{{- define "kata.selector" -}}
app.kubernetes.io/name: kata
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- /* Of all pods that come from the image. */ -}}
{{- define "kata.pull" -}}
image: {{ include "kata.image" . }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
{{- end }}

{{- define "kata.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Of the installer, whatever runs it; without privileges, since it needs the node's files and chroot(2) only. */ -}}
{{- define "kata.installer" -}}
{{- include "kata.pull" . }}
env:
  - name: NODE_NAME
    valueFrom: { fieldRef: { fieldPath: spec.nodeName } }
securityContext:
  runAsUser: 0
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
    add: [CHOWN, DAC_OVERRIDE, FOWNER, SYS_CHROOT]
  seccompProfile: { type: RuntimeDefault }
terminationMessagePolicy: FallbackToLogsOnError
resources:
  {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - { name: node, mountPath: /host }
  - { name: run, mountPath: /run/kata-deploy }
{{- end }}

{{- define "kata.volumes" -}}
- name: node
  hostPath: { path: /, type: Directory }
- name: run
  emptyDir: { medium: Memory, sizeLimit: 1Mi }
{{- end }}

{{- define "kata.installOptions" -}}
- --node=$(NODE_NAME)
- --prefix={{ .Values.prefix }}
{{- with .Values.containerd.config }}
- --config={{ . }}
{{- end }}
- --service={{ .Values.containerd.service }}
{{- if .Values.containerd.restart }}
- --restart
{{- end }}
{{- end }}
