//! The calls of the runtime service, one by one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use tokio::net::UnixStream;
use tokio::runtime::Runtime;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tonic::Request;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::api;

/// The error of a failed call.
pub type Status = tonic::Status;

/// Events as they arrive; they are received while a call is made.
pub type Events = UnboundedReceiver<Result<api::ContainerEventResponse, Status>>;

/// The kubelet's own limit of a call (`runtimeRequestTimeout`).
const LIMIT: Duration = Duration::from_secs(120);

/// A connection to a CRI socket.
#[derive(Debug)]
pub struct Client {
    runtime: Runtime,
    calls: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

macro_rules! calls {
    ($($service:ident.$call:ident($request:ident) -> $answer:ident;)*) => {
        impl Client {
            $(pub fn $call(&self, request: api::$request) -> Result<api::$answer, Status> {
                let mut request = Request::new(request);
                request.set_timeout(LIMIT);
                let mut service = self.$service.clone();
                self.runtime.block_on(service.$call(request)).map(tonic::Response::into_inner)
            })*
        }
    };
}

calls! {
    calls.version(VersionRequest) -> VersionResponse;
    calls.status(StatusRequest) -> StatusResponse;
    calls.run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
    calls.stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
    calls.remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
    calls.pod_sandbox_status(PodSandboxStatusRequest) -> PodSandboxStatusResponse;
    calls.list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
    calls.create_container(CreateContainerRequest) -> CreateContainerResponse;
    calls.start_container(StartContainerRequest) -> StartContainerResponse;
    calls.stop_container(StopContainerRequest) -> StopContainerResponse;
    calls.remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
    calls.list_containers(ListContainersRequest) -> ListContainersResponse;
    calls.container_status(ContainerStatusRequest) -> ContainerStatusResponse;
    calls.update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
    calls.reopen_container_log(ReopenContainerLogRequest) -> ReopenContainerLogResponse;
    calls.exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    calls.exec(ExecRequest) -> ExecResponse;
    calls.attach(AttachRequest) -> AttachResponse;
    calls.port_forward(PortForwardRequest) -> PortForwardResponse;
    calls.container_stats(ContainerStatsRequest) -> ContainerStatsResponse;
    calls.list_container_stats(ListContainerStatsRequest) -> ListContainerStatsResponse;
    calls.pod_sandbox_stats(PodSandboxStatsRequest) -> PodSandboxStatsResponse;
    calls.list_pod_sandbox_stats(ListPodSandboxStatsRequest) -> ListPodSandboxStatsResponse;
    calls.checkpoint_container(CheckpointContainerRequest) -> CheckpointContainerResponse;
    images.list_images(ListImagesRequest) -> ListImagesResponse;
    images.image_status(ImageStatusRequest) -> ImageStatusResponse;
}

impl Client {
    /// The events that the kubelet's evented PLEG receives, from now on. The answer begins with the first event.
    pub fn container_events(&self) -> Events {
        let (mut calls, (sender, received)) = (self.calls.clone(), unbounded_channel());
        self.runtime.spawn(async move {
            let mut events = match calls.get_container_events(api::GetEventsRequest {}).await {
                Ok(events) => events.into_inner(),
                Err(e) => return drop(sender.send(Err(e))),
            };
            while let Some(event) = events.message().await.transpose() {
                drop(sender.send(event));
            }
        });
        received
    }

    /// The next one, or a panic after half a minute.
    pub fn next_event(&self, events: &mut Events) -> Result<api::ContainerEventResponse, Status> {
        let next = async { tokio::time::timeout(Duration::from_secs(30), events.recv()).await };
        self.runtime.block_on(next).expect("an event within 30 s").expect("events go on")
    }

    pub fn connect(socket: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("runtime");
        let socket: PathBuf = socket.into();
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        });
        // A channel's tasks run only during a call.
        let channel = runtime.block_on(async {
            let endpoint = Endpoint::from_static("http://containerd");
            endpoint.connect_with_connector(connector).await.expect("CRI socket")
        });
        let limit = 64 << 20;
        let calls = RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(limit);
        Self { runtime, calls, images: ImageServiceClient::new(channel) }
    }
}
